package main

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
)

// counted sends an answer, counts its bytes, and breaks off where an injected fault says so.
type counted struct {
	http.ResponseWriter
	sent  int64
	limit int64 // bytes; 0 for all
}

func (w *counted) Write(data []byte) (int, error) {
	if w.limit > 0 && w.sent+int64(len(data)) > w.limit {
		n, _ := w.ResponseWriter.Write(data[:w.limit-w.sent])
		w.sent += int64(n)
		if flusher, ok := w.ResponseWriter.(http.Flusher); ok {
			flusher.Flush()
		}
		panic(http.ErrAbortHandler)
	}
	n, err := w.ResponseWriter.Write(data)
	w.sent += int64(n)
	return n, err
}

// transfer lets f answer a request for data, and notes what was moved. Injected faults come first: they are named
// by the method and the first folder of the path, as "GET /nfc".
func (c *center) transfer(w http.ResponseWriter, r *http.Request, f func(w http.ResponseWriter, body *reader)) {
	first := "/" + strings.SplitN(r.URL.Path[1:], "/", 2)[0]
	c.mu.Lock()
	fault := c.injectedAt(r.Method+" "+first, r.URL.Path)
	c.mu.Unlock()
	out, in := &counted{ResponseWriter: w}, &reader{source: r.Body}
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.requests = append(c.requests, request{
			Method: r.Method + " " + first, Object: r.URL.Path, Range: r.Header.Get("Range"), Sent: out.sent, Received: in.got})
	}()
	if fault != nil {
		if fault.Status != 0 {
			http.Error(out, "injected", fault.Status)
			return
		}
		if fault.AfterBytes == 0 {
			panic(http.ErrAbortHandler)
		}
		out.limit, in.limit = fault.AfterBytes, fault.AfterBytes
	}
	f(out, in)
}

// reader counts what a client sends.
type reader struct {
	source io.Reader
	got    int64
	limit  int64 // bytes, where the connection breaks; 0 for never
}

func (r *reader) Read(data []byte) (int, error) {
	n, err := r.source.Read(data)
	r.got += int64(n)
	if r.limit > 0 && r.got > r.limit {
		panic(http.ErrAbortHandler)
	}
	return n, err
}

// serveFolder answers for files of datastores.
func (c *center) serveFolder(w http.ResponseWriter, r *http.Request) {
	if !c.known(r) {
		w.Header().Set("WWW-Authenticate", `Basic realm="VMware HTTP server"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	c.transfer(w, r, func(w http.ResponseWriter, body *reader) {
		store := datastore(r.URL.Query().Get("dsName"))
		if store == nil || path.Base(r.URL.Query().Get("dcPath")) != datacenter().Name {
			http.Error(w, "no such datastore", http.StatusNotFound)
			return
		}
		name := strings.TrimPrefix(path.Clean(r.URL.Path), "/folder/")
		where := path.Join(store.Info.GetDatastoreInfo().Url, name)
		if c.locked((&object.DatastorePath{Datastore: store.Name, Path: name}).String(), r.Method) {
			http.Error(w, "Failed to lock the file", http.StatusInternalServerError)
			return
		}
		switch r.Method {
		case http.MethodGet, http.MethodHead:
			sendFile(w, r, where)
		case http.MethodPut:
			saveFile(w, body, where)
		case http.MethodDelete:
			if err := os.Remove(where); err != nil {
				http.NotFound(w, r)
				return
			}
			w.WriteHeader(http.StatusNoContent)
		default:
			w.WriteHeader(http.StatusMethodNotAllowed)
		}
	})
}

func sendFile(w http.ResponseWriter, r *http.Request, where string) {
	file, err := os.Open(where)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer file.Close()
	about, err := file.Stat()
	if err != nil || about.IsDir() {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, where, about.ModTime(), file)
}

func saveFile(w http.ResponseWriter, body io.Reader, where string) {
	if err := os.MkdirAll(path.Dir(where), 0700); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	file, err := os.Create(where)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer file.Close()
	if _, err := io.Copy(file, body); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusCreated)
}

// locked tells whether a file belongs to a disk of a running VM, so that it cannot be touched; whether such a file
// can be read differs between hosts, and is a setting.
func (c *center) locked(file, method string) bool {
	for _, suffix := range []string{"-flat.vmdk", "-delta.vmdk"} {
		if !strings.HasSuffix(file, suffix) {
			continue
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		writes := method != http.MethodGet && method != http.MethodHead
		return (writes || c.settings.LockRunning) && c.locker(strings.TrimSuffix(file, suffix)+".vmdk") != nil
	}
	return false
}

// serveLease answers for disks of a lease. Who has its URL needs no session.
func (c *center) serveLease(w http.ResponseWriter, r *http.Request) {
	c.transfer(w, r, func(w http.ResponseWriter, body *reader) {
		parts := strings.Split(r.URL.Path, "/") // "", "nfc", lease, file
		if len(parts) != 4 {
			http.NotFound(w, r)
			return
		}
		l, raw := c.leasedFile(parts[2], parts[3])
		switch {
		case raw == nil:
			http.NotFound(w, r)
		case r.Method == http.MethodGet && !l.upload:
			c.download(w, l, parts[3], raw)
		case (r.Method == http.MethodPut || r.Method == http.MethodPost) && l.upload:
			c.upload(w, body, raw)
		default:
			w.WriteHeader(http.StatusMethodNotAllowed)
		}
	})
}

// leasedFile returns a lease that is ready, and a disk of it, opened once more.
func (c *center) leasedFile(id, name string) (*lease, *os.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.leases[id]
	if l == nil || l.State != types.HttpNfcLeaseStateReady || l.files[name].raw == nil {
		return nil, nil
	}
	// Also of a link that has been folded into another since.
	file, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", l.files[name].raw.Fd()), os.O_RDWR, 0)
	if err != nil {
		return nil, nil
	}
	return l, file
}

// download sends a disk as stream-optimized VMDK, like ESXi without telling its length.
func (c *center) download(w http.ResponseWriter, l *lease, name string, raw *os.File) {
	defer raw.Close()
	stream, err := c.scratch()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer os.Remove(stream.Name())
	defer stream.Close()
	if err := toStream(inherited(raw), stream.Name()); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/x-vnd.vmware-streamVmdk")
	sum := sha1.New()
	sent, err := io.Copy(io.MultiWriter(w, sum), stream)
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	file := l.files[name]
	file.sent, file.sha1 = sent, hex.EncodeToString(sum.Sum(nil))
	l.files[name] = file
}

// upload writes a stream-optimized VMDK into a disk.
func (c *center) upload(w http.ResponseWriter, body io.Reader, raw *os.File) {
	defer raw.Close()
	stream, err := c.scratch()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer os.Remove(stream.Name())
	defer stream.Close()
	if _, err := io.Copy(stream, body); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if err := fromStream(stream.Name(), inherited(raw)); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusCreated)
}

// inherited returns a path by which another program opens a file that we have open.
func inherited(file *os.File) string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), file.Fd())
}

func (c *center) scratch() (*os.File, error) {
	return os.CreateTemp(c.folder, "stream.")
}
