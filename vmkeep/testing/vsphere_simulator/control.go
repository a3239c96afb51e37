package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"sort"
	"strconv"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// settings are what servers differ in.
type settings struct {
	LockRunning  bool  // extents of running VMs cannot be read by /folder
	LeaseTimeout int32 // seconds
	PageSize     int   // changed areas in one answer
	Coarse       bool  // one changed area for all of the disk
}

// request is one call, or one transfer.
type request struct {
	Method   string
	Object   string // the id of the object, or the path
	Range    string // as in the header
	Sent     int64  // bytes to the client, of data
	Received int64  // bytes from the client
}

// shown is a VM as a test sees it.
type shown struct {
	ID                  string
	Running             bool
	ConsolidationNeeded bool
	Disks               []shownDisk
	Snapshots           []shownSnapshot
}

type shownDisk struct {
	Key   int32
	Label string
	File  string // in the datastore: the link that is written
	Links int    // of the chain
	Raw   string // local path of what it shows
	Size  int64  // bytes
	UUID  string
}

type shownSnapshot struct {
	ID          string
	Name        string
	Description string
	Quiesced    bool
}

// control does for a test what no client can. It asks for no login: it is the test's own server, on the loopback.
func (c *center) control(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	query := r.URL.Query()
	var err error
	var answer interface{} = struct{}{}
	switch r.Method + " " + r.URL.Path {
	case "POST /-/settings":
		err = json.NewDecoder(r.Body).Decode(&c.settings)
	case "POST /-/fault":
		fault := &injected{Times: 1}
		if err = json.NewDecoder(r.Body).Decode(fault); err == nil {
			c.faults = append(c.faults, fault)
		}
	case "GET /-/faults":
		answer = append([]*injected{}, c.faults...)
	case "POST /-/expire":
		c.sessions = map[string]bool{}
	case "GET /-/requests":
		answer = append([]request{}, c.requests...)
	case "DELETE /-/requests":
		c.requests = nil
	case "GET /-/leases":
		open := []string{}
		for _, l := range c.leases {
			open = append(open, l.Self.Value)
		}
		sort.Strings(open)
		answer = open
	case "POST /-/guest":
		var has guest
		if err = json.NewDecoder(r.Body).Decode(&has); err == nil {
			c.guests[query.Get("vm")] = has
			if vm := named(query.Get("vm")); vm != nil {
				c.showGuest(vm)
			}
		}
	case "GET /-/vms":
		all := map[string]shown{}
		for _, entity := range simulator.Map.All("VirtualMachine") {
			vm := entity.(*simulator.VirtualMachine)
			all[vm.Name] = c.show(vm)
		}
		answer = all
	case "POST /-/write":
		err = c.writeAsGuest(query, r.Body)
	default:
		http.NotFound(w, r)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer)
}

func (c *center) show(vm *simulator.VirtualMachine) shown {
	result := shown{ID: vm.Self.Value, Running: running(vm), Disks: []shownDisk{}, Snapshots: []shownSnapshot{}}
	if needed := vm.Runtime.ConsolidationNeeded; needed != nil {
		result.ConsolidationNeeded = *needed
	}
	for _, disk := range virtualDisks(vm.Config.Hardware.Device) {
		backing := flat(disk)
		result.Disks = append(result.Disks, shownDisk{
			Key: disk.Key, Label: disk.DeviceInfo.GetDescription().Label, File: backing.FileName,
			Links: len(c.disks.chain(backing.FileName)), Raw: c.disks.raw(backing.FileName),
			Size: disk.CapacityInBytes, UUID: backing.Uuid})
	}
	var walk func([]types.VirtualMachineSnapshotTree)
	walk = func(tree []types.VirtualMachineSnapshotTree) {
		for _, node := range tree {
			result.Snapshots = append(result.Snapshots, shownSnapshot{
				ID: node.Snapshot.Value, Name: node.Name, Description: node.Description, Quiesced: node.Quiesced})
			walk(node.ChildSnapshotList)
		}
	}
	if vm.Snapshot != nil {
		walk(vm.Snapshot.RootSnapshotList)
	}
	return result
}

func named(name string) *simulator.VirtualMachine {
	for _, entity := range simulator.Map.All("VirtualMachine") {
		if vm := entity.(*simulator.VirtualMachine); vm.Name == name {
			return vm
		}
	}
	return nil
}

// writeAsGuest writes into a disk of a VM; never while a snapshot is taken, because that has the lock.
func (c *center) writeAsGuest(where url.Values, data io.Reader) error {
	vm := named(where.Get("vm"))
	if vm == nil {
		return fmt.Errorf("no VM %s", where.Get("vm"))
	}
	number, err := strconv.Atoi(where.Get("disk"))
	if err != nil {
		return err
	}
	offset, err := strconv.ParseInt(where.Get("offset"), 10, 64)
	if err != nil {
		return err
	}
	disks := virtualDisks(vm.Config.Hardware.Device)
	if number >= len(disks) {
		return fmt.Errorf("no disk %d", number)
	}
	file, err := os.OpenFile(c.disks.raw(flat(disks[number]).FileName), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.Copy(&writerAt{file, offset}, data)
	return err
}
