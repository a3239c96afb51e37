// A vSphere server for tests: govmomi's simulator with real bytes behind its disks.
//
// The simulator of govmomi answers most of the API from memory. What a backup lives on it lacks: what disks hold,
// snapshots that keep it, the areas that changed, leases that move it. This program puts that around it:
//
//	client ── soap.go ── our methods (snapshots.go, changes.go, leases.go, ...)
//	              └───── all others: the simulator
//	       ── transfers.go ── /folder and /nfc, the data
//	tests  ── control.go ── what only a test may do: write as the guest, ask what there is, inject faults
//
// One lock lets one call at a time in. Data moves without it.
package main

import (
	"crypto/sha1"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"log"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	folder := flag.String("folder", "", "an existing folder for datastores and all else that is kept in files")
	user := flag.String("user", "", "who may log in")
	certificate := flag.String("certificate", "", "PEM file with the server's certificate")
	key := flag.String("key", "", "PEM file with the key of the certificate")
	flag.Parse()
	// A secret is no argument: arguments are shown by ps.
	password := os.Getenv("VSPHERE_SIMULATOR_PASSWORD")
	if *folder == "" || *user == "" || password == "" {
		log.Fatal("-folder, -user and VSPHERE_SIMULATOR_PASSWORD are needed")
	}
	pair, err := tls.LoadX509KeyPair(*certificate, *key)
	if err != nil {
		log.Fatal(err)
	}
	model, err := inventory(*folder)
	if err != nil {
		log.Fatal(err)
	}
	model.Service.Listen = &url.URL{Host: "127.0.0.1:0", User: url.UserPassword(*user, password)}
	model.Service.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	server := model.Service.NewServer()
	center := newCenter(server.Config.Handler, *folder)
	center.user, center.password = *user, password
	center.thumbprint = thumbprint(pair.Certificate[0])
	if err := center.addNetworks("lan", "dmz"); err != nil {
		log.Fatal(err)
	}
	server.Config.Handler = center
	fmt.Printf("READY %s\n", server.URL.Host)

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		// Whoever started the program holds the other end: it ends with them, however they end.
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop <- syscall.SIGTERM
	}()
	<-stop
	// server.Close() would wait for requests, of which one may be meant to hang.
}

// thumbprint returns what leases call sslThumbprint: the SHA-1 of the certificate, in pairs of digits.
func thumbprint(der []byte) string {
	sum := sha1.Sum(der)
	pairs := make([]string, len(sum))
	for i, b := range sum {
		pairs[i] = fmt.Sprintf("%02X", b)
	}
	return strings.Join(pairs, ":")
}
