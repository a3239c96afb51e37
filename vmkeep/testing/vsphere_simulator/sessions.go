package main

import (
	"net/http"

	"github.com/vmware/govmomi/vim25/soap"
)

// cookie returns the session that a request says it belongs to.
func cookie(r *http.Request) string {
	if found, err := r.Cookie(soap.SessionCookieName); err == nil {
		return found.Value
	}
	return ""
}

// sessionOf returns the session that an answer begins.
func sessionOf(header http.Header) string {
	for _, found := range (&http.Response{Header: header}).Cookies() {
		if found.Name == soap.SessionCookieName {
			return found.Value
		}
	}
	return ""
}

// authenticated tells whether a request comes from someone who logged in.
func (c *center) authenticated(r *http.Request) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sessions[cookie(r)]
}

// known tells whether a request for a file comes from someone who logged in, or says who it comes from.
func (c *center) known(r *http.Request) bool {
	user, password, ok := r.BasicAuth()
	return ok && user == c.user && password == c.password || c.authenticated(r)
}
