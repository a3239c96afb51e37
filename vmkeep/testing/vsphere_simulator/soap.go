package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"log"
	"net/http"
	"reflect"
	"strings"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	vimxml "github.com/vmware/govmomi/vim25/xml"
)

// center is the server: what the simulator does not know of its VMs.
type center struct {
	simulator http.Handler
	folder    string

	user, password, thumbprint string

	mu       sync.Mutex
	sessions map[string]bool
	settings settings
	faults   []*injected
	requests []request
	pending  map[types.ManagedObjectReference]bool // tasks that an injected fault keeps from beginning
	disks    diskFiles
	tracking tracking
	leases   map[string]*lease
	removed  map[string]*unregistered // by path of the configuration file
	guests   map[string]guest         // by name of the VM
	sequence int
}

func newCenter(next http.Handler, folder string) *center {
	return &center{
		simulator: next,
		folder:    folder,
		sessions:  map[string]bool{},
		settings:  settings{LeaseTimeout: 300, PageSize: 2000},
		pending:   map[types.ManagedObjectReference]bool{},
		disks:     diskFiles{folder: folder, parents: map[string]string{}},
		tracking:  tracking{marks: map[string]map[int64]hash{}, last: map[string]int{}},
		leases:    map[string]*lease{},
		removed:   map[string]*unregistered{},
		guests:    map[string]guest{},
	}
}

// next returns a number that was not used before.
func (c *center) next() int {
	c.sequence++
	return c.sequence
}

func (c *center) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/sdk" && r.Method == http.MethodPost:
		c.sdk(w, r)
	case strings.HasPrefix(r.URL.Path, "/folder/"):
		c.serveFolder(w, r)
	case strings.HasPrefix(r.URL.Path, "/nfc/"):
		c.serveLease(w, r)
	case strings.HasPrefix(r.URL.Path, "/-/"):
		c.control(w, r)
	default:
		c.simulator.ServeHTTP(w, r)
	}
}

// method carries out one call; it returns what the client gets, or the fault.
type method func(c *center, body interface{}) (types.AnyType, types.BaseMethodFault)

// on makes a method of one that takes its own kind of request.
func on[T any](f func(*center, *T) (types.AnyType, types.BaseMethodFault)) method {
	return func(c *center, body interface{}) (types.AnyType, types.BaseMethodFault) { return f(c, body.(*T)) }
}

// onTask makes a method of one whose work a task does.
func onTask[T any](name string, f func(*center, *T) (types.AnyType, types.BaseMethodFault)) method {
	return func(c *center, body interface{}) (types.AnyType, types.BaseMethodFault) {
		req := body.(*T)
		return c.task(entityOf(body), name, func() (types.AnyType, types.BaseMethodFault) { return f(c, req) }), nil
	}
}

// ours are the methods that we carry out; a call of another is the simulator's.
var ours map[string]method

func init() {
	// Here, not where it is declared: the methods use what uses it.
	ours = map[string]method{
		"CreateVM_Task":                on(createVM),
		"ReconfigVM_Task":              on(reconfigVM),
		"Destroy_Task":                 destroy,
		"UnregisterVM":                 on(unregisterVM),
		"RegisterVM_Task":              on(registerVM),
		"PowerOnVM_Task":               on(powerOn),
		"PowerOffVM_Task":              on(powerOff),
		"CreateSnapshot_Task":          on(createSnapshot),
		"RemoveSnapshot_Task":          on(removeSnapshot),
		"RemoveAllSnapshots_Task":      on(removeAllSnapshots),
		"RevertToSnapshot_Task":        on(revertToSnapshot),
		"RevertToCurrentSnapshot_Task": on(revertToCurrentSnapshot),
		"ConsolidateVMDisks_Task":      on(consolidateVMDisks),
		"QueryChangedDiskAreas":        on(queryChangedDiskAreas),
		"ExportVm":                     on(exportVM),
		"ExportSnapshot":               on(exportSnapshot),
		"ImportVApp":                   on(importVApp),
		"HttpNfcLeaseComplete":         on(leaseComplete),
		"HttpNfcLeaseAbort":            on(leaseAbort),
		"HttpNfcLeaseProgress":         on(leaseProgress),
		"HttpNfcLeaseGetManifest":      on(leaseManifest),
		"CreateVirtualDisk_Task":       onTask("createVirtualDisk", createVirtualDisk),
		"CopyVirtualDisk_Task":         onTask("copyVirtualDisk", copyVirtualDisk),
		"MoveVirtualDisk_Task":         onTask("moveVirtualDisk", moveVirtualDisk),
		"DeleteVirtualDisk_Task":       onTask("deleteVirtualDisk", deleteVirtualDisk),
		"ExtendVirtualDisk_Task":       onTask("extendVirtualDisk", extendVirtualDisk),
		"QueryVirtualDiskUuid":         on(queryVirtualDiskUUID),
		"AddPortGroup":                 on(addPortGroup),
		"RemovePortGroup":              on(removePortGroup),
		"CancelTask":                   on(cancelTask),
	}
}

// sdk answers a call of the API.
func (c *center) sdk(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(data))
	call, err := simulator.UnmarshalBody(types.TypeFunc(), data)
	if err != nil {
		answerFault(w, &types.InvalidRequest{}, err.Error())
		return
	}
	if !c.authenticated(r) {
		if !anonymous(call) {
			answerFault(w, &types.NotAuthenticated{NoPermission: types.NoPermission{
				Object: call.This, PrivilegeId: "System.View"}}, "The session is not authenticated.")
			return
		}
		// The simulator may still know a session that we ended, and refuses a second login in it.
		r.Header.Del("Cookie")
	}
	if strings.HasPrefix(call.Name, "WaitForUpdates") {
		c.simulator.ServeHTTP(w, r) // it waits for what others do
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests = append(c.requests, request{Method: call.Name, Object: call.This.Value})
	fault := c.injectedInto(call)
	if fault != nil && fault.Drop == "before" {
		panic(http.ErrAbortHandler)
	}
	switch own := ours[call.Name]; {
	case fault != nil && (fault.Fault != "" || fault.Hang != 0):
		c.answer(w, call.Name, func() (types.AnyType, types.BaseMethodFault) { return c.inject(fault, call) })
	case own != nil:
		c.answer(w, call.Name, func() (types.AnyType, types.BaseMethodFault) { return own(c, call.Body) })
	default:
		c.pass(w, r, call)
	}
	if fault != nil && fault.Drop == "after" {
		panic(http.ErrAbortHandler)
	}
}

// anonymous tells whether a call needs no login.
func anonymous(call *simulator.Method) bool {
	switch call.Name {
	case "RetrieveServiceContent", "Login":
		return true
	case "Fetch":
		return call.This.Type == "ServiceInstance"
	}
	return false
}

// answer sends what a method returns.
func (c *center) answer(w http.ResponseWriter, name string, run func() (types.AnyType, types.BaseMethodFault)) {
	value, fault := guarded(name, run)
	if fault != nil {
		answerFault(w, fault, text(fault))
		return
	}
	var body bytes.Buffer
	fmt.Fprintf(&body, `<%sResponse xmlns="urn:vim25">`, name)
	if value != nil {
		encoder := vimxml.NewEncoder(&body)
		start := vimxml.StartElement{Name: vimxml.Name{Local: "returnval"}}
		if err := encoder.EncodeElement(value, start); err != nil {
			panic(err)
		}
	}
	fmt.Fprintf(&body, `</%sResponse>`, name)
	send(w, http.StatusOK, body.Bytes())
}

// guarded makes a fault of a panic: the simulator panics where it did not expect a request.
func guarded(
	name string, run func() (types.AnyType, types.BaseMethodFault),
) (value types.AnyType, fault types.BaseMethodFault) {
	defer func() {
		if cause := recover(); cause != nil {
			log.Printf("%s panics: %v", name, cause)
			value, fault = nil, &types.SystemError{Reason: fmt.Sprint(cause)}
		}
	}()
	return run()
}

// pass lets the simulator answer, and sees who logs in and out.
func (c *center) pass(w http.ResponseWriter, r *http.Request, call *simulator.Method) {
	reply := &recorded{ResponseWriter: w, code: http.StatusOK}
	_, fault := guarded(call.Name, func() (types.AnyType, types.BaseMethodFault) {
		c.simulator.ServeHTTP(reply, r)
		return nil, nil
	})
	switch {
	case fault != nil && call.Name == "Fetch":
		// It has no other way of saying that a property is unset.
		send(w, http.StatusOK, []byte(`<FetchResponse xmlns="urn:vim25"></FetchResponse>`))
		return
	case fault != nil:
		answerFault(w, fault, text(fault))
		return
	case call.Name == "Login" && reply.code == http.StatusOK:
		c.sessions[sessionOf(reply.Header())] = true
	case call.Name == "Logout":
		delete(c.sessions, cookie(r))
	}
	w.WriteHeader(reply.code)
	_, _ = w.Write(reply.body.Bytes())
}

// recorded keeps an answer back.
type recorded struct {
	http.ResponseWriter
	code int
	body bytes.Buffer
}

func (r *recorded) WriteHeader(code int)           { r.code = code }
func (r *recorded) Write(data []byte) (int, error) { return r.body.Write(data) }

// answerFault sends a fault.
func answerFault(w http.ResponseWriter, fault types.BaseMethodFault, message string) {
	kind := reflect.TypeOf(fault).Elem().Name()
	var detail, escaped bytes.Buffer
	encoder := vimxml.NewEncoder(&detail)
	err := encoder.EncodeElement(fault, vimxml.StartElement{
		Name: vimxml.Name{Local: kind + "Fault"},
		Attr: []vimxml.Attr{
			{Name: vimxml.Name{Local: "xmlns"}, Value: "urn:vim25"},
			{Name: vimxml.Name{Local: "xsi:type"}, Value: kind},
		},
	})
	if err != nil {
		panic(err)
	}
	_ = xml.EscapeText(&escaped, []byte(message))
	send(w, http.StatusInternalServerError, []byte(fmt.Sprintf(
		`<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>%s</faultstring><detail>%s</detail></soapenv:Fault>`,
		escaped.String(), detail.String())))
}

func send(w http.ResponseWriter, code int, body []byte) {
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	w.WriteHeader(code)
	fmt.Fprint(w, `<?xml version="1.0" encoding="UTF-8"?>`+
		`<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"`+
		` xmlns:xsd="http://www.w3.org/2001/XMLSchema" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">`+
		`<soapenv:Body>`)
	_, _ = w.Write(body)
	fmt.Fprint(w, `</soapenv:Body></soapenv:Envelope>`)
}

// fromInside is what the simulator's own methods want to know of a call.
func fromInside() *simulator.Context {
	return &simulator.Context{
		Map:     simulator.Map,
		Session: &simulator.Session{Registry: simulator.NewRegistry()},
	}
}

// outcome takes the value or the fault out of an answer of the simulator; of a task, its result.
func outcome(answer soap.HasFault) (types.AnyType, types.BaseMethodFault) {
	if fault := answer.Fault(); fault != nil {
		return nil, fault.VimFault().(types.BaseMethodFault)
	}
	value := reflect.ValueOf(answer).Elem().FieldByName("Res").Elem().FieldByName("Returnval")
	if !value.IsValid() {
		return nil, nil
	}
	if ref, ok := value.Interface().(types.ManagedObjectReference); ok {
		if task, ok := simulator.Map.Get(ref).(*simulator.Task); ok {
			if task.Info.Error != nil {
				return nil, task.Info.Error.Fault
			}
			return task.Info.Result, nil
		}
	}
	return value.Interface(), nil
}

// entityOf returns the object whose method is called.
func entityOf(body interface{}) types.ManagedObjectReference {
	return reflect.ValueOf(body).Elem().FieldByName("This").Interface().(types.ManagedObjectReference)
}
