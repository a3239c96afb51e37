package main

import (
	"fmt"
	"os"
	"reflect"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// initializing is how long a lease is not ready after it was asked for.
const initializing = 20 * time.Millisecond

// lease lets disks of a VM be read or written over HTTP, until it is completed, aborted, or nobody reports progress
// for as long as it says.
type lease struct {
	mo.HttpNfcLease

	id     string
	vm     *simulator.VirtualMachine
	files  map[string]leased // by the name in the URL
	upload bool
	renew  *time.Timer
}

// leased is one disk that a lease opens.
type leased struct {
	key  string
	raw  *os.File // kept open: the disk's links may be folded while it is read
	size int64    // bytes

	sent int64 // bytes, once it was read
	sha1 string
}

func exportVM(c *center, req *types.ExportVm) (types.AnyType, types.BaseMethodFault) {
	vm, fault := machine(req.This)
	if fault != nil {
		return nil, fault
	}
	if running(vm) {
		return nil, &types.InvalidPowerState{
			RequestedState: types.VirtualMachinePowerStatePoweredOff, ExistingState: vm.Runtime.PowerState}
	}
	return c.lease(vm, vm.Config, req.This, false)
}

func exportSnapshot(c *center, req *types.ExportSnapshot) (types.AnyType, types.BaseMethodFault) {
	snapshot, ok := simulator.Map.Get(req.This).(*simulator.VirtualMachineSnapshot)
	if !ok {
		return nil, &types.ManagedObjectNotFound{Obj: req.This}
	}
	vm, fault := machine(snapshot.Vm)
	if fault != nil {
		return nil, fault
	}
	return c.lease(vm, &snapshot.Config, snapshot.Vm, false)
}

func importVApp(c *center, req *types.ImportVApp) (types.AnyType, types.BaseMethodFault) {
	spec, ok := req.Spec.(*types.VirtualMachineImportSpec)
	if !ok {
		return nil, &types.NotSupported{}
	}
	pool, ok := simulator.Map.Get(req.This).(mo.Entity)
	if !ok {
		return nil, &types.ManagedObjectNotFound{Obj: req.This}
	}
	folder := req.Folder
	if folder == nil {
		folder = &datacenter().VmFolder
	}
	value, fault := c.createVM(
		&types.CreateVM_Task{This: *folder, Config: spec.ConfigSpec, Pool: pool.Reference(), Host: req.Host})
	if fault != nil {
		return nil, fault
	}
	vm, fault := machine(value.(types.ManagedObjectReference))
	if fault != nil {
		return nil, fault
	}
	return c.lease(vm, vm.Config, vm.Self, true)
}

// lease opens all disks of a VM, as the configuration has them.
func (c *center) lease(
	vm *simulator.VirtualMachine, config *types.VirtualMachineConfigInfo, entity types.ManagedObjectReference, upload bool,
) (types.AnyType, types.BaseMethodFault) {
	l := &lease{id: fmt.Sprintf("52%06d", c.next()), vm: vm, files: map[string]leased{}, upload: upload}
	l.Self = types.ManagedObjectReference{Type: "HttpNfcLease", Value: "session[vmkeep]" + l.id}
	l.State = types.HttpNfcLeaseStateInitializing
	info := &types.HttpNfcLeaseInfo{Lease: l.Self, Entity: entity, LeaseTimeout: c.settings.LeaseTimeout}
	for i, disk := range virtualDisks(config.Hardware.Device) {
		name := fmt.Sprintf("disk-%d.vmdk", i)
		file, err := os.OpenFile(c.disks.raw(flat(disk).FileName), os.O_RDWR, 0)
		if err != nil {
			l.close()
			return nil, &types.FileNotFound{FileFault: types.FileFault{File: flat(disk).FileName}}
		}
		key := fmt.Sprintf("/%s/%s", vm.Self.Value, deviceName(config, disk))
		l.files[name] = leased{key: key, raw: file, size: disk.CapacityInBytes}
		info.DeviceUrl = append(info.DeviceUrl, types.HttpNfcLeaseDeviceUrl{
			Key: key, ImportKey: fmt.Sprintf("/%s/%s", vm.Name, deviceName(config, disk)),
			Url: fmt.Sprintf("https://*/nfc/%s/%s", l.id, name), SslThumbprint: c.thumbprint,
			Disk: types.NewBool(true), TargetId: name,
		})
		info.TotalDiskCapacityInKB += disk.CapacityInKB
	}
	if !upload {
		// Not every device of a lease is a disk.
		info.DeviceUrl = append(info.DeviceUrl, types.HttpNfcLeaseDeviceUrl{
			Key: fmt.Sprintf("/%s/nvram", vm.Self.Value), ImportKey: fmt.Sprintf("/%s/nvram", vm.Name),
			Url: fmt.Sprintf("https://*/nfc/%s/%s.nvram", l.id, vm.Name), SslThumbprint: c.thumbprint,
			Disk: types.NewBool(false), TargetId: vm.Name + ".nvram",
		})
	}
	c.leases[l.id] = l
	simulator.Map.Put(l)
	time.AfterFunc(initializing, func() { c.ready(l, info) })
	return l.Self, nil
}

// deviceName is what leases call a disk: its controller, the bus of that, and the unit.
func deviceName(config *types.VirtualMachineConfigInfo, disk *types.VirtualDisk) string {
	controller := object.VirtualDeviceList(config.Hardware.Device).FindByKey(disk.ControllerKey)
	kind, bus := reflect.TypeOf(controller).Elem().Name(), int32(0)
	if at, ok := controller.(types.BaseVirtualController); ok {
		bus = at.GetVirtualController().BusNumber
	}
	return fmt.Sprintf("%s%d:%d", kind, bus, *disk.UnitNumber)
}

func (c *center) ready(l *lease, info *types.HttpNfcLeaseInfo) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.State != types.HttpNfcLeaseStateInitializing {
		return
	}
	simulator.Map.Update(l, []types.PropertyChange{
		{Name: "info", Val: *info},
		{Name: "initializeProgress", Val: int32(100)},
		{Name: "state", Val: types.HttpNfcLeaseStateReady},
	})
	l.renew = time.AfterFunc(time.Duration(info.LeaseTimeout)*time.Second, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.fail(l, &types.Timedout{})
	})
}

// fail ends a lease with an error.
func (c *center) fail(l *lease, fault types.BaseMethodFault) {
	if !l.open() {
		return
	}
	c.end(l, false)
	simulator.Map.Update(l, []types.PropertyChange{
		{Name: "error", Val: types.LocalizedMethodFault{Fault: fault, LocalizedMessage: text(fault)}},
		{Name: "state", Val: types.HttpNfcLeaseStateError},
	})
}

// end closes a lease; a VM that was not completely imported goes.
func (c *center) end(l *lease, complete bool) {
	l.close()
	delete(c.leases, l.id)
	if l.upload && !complete {
		c.destroy(l.vm)
	}
}

func (l *lease) open() bool {
	return l.State == types.HttpNfcLeaseStateInitializing || l.State == types.HttpNfcLeaseStateReady
}

func (l *lease) close() {
	if l.renew != nil {
		l.renew.Stop()
	}
	for _, file := range l.files {
		_ = file.raw.Close()
	}
}

// openLease returns a lease that can be worked with.
func openLease(ref types.ManagedObjectReference) (*lease, types.BaseMethodFault) {
	l, ok := simulator.Map.Get(ref).(*lease)
	if !ok {
		return nil, &types.ManagedObjectNotFound{Obj: ref}
	}
	if !l.open() {
		return nil, &types.InvalidState{}
	}
	return l, nil
}

func leaseComplete(c *center, req *types.HttpNfcLeaseComplete) (types.AnyType, types.BaseMethodFault) {
	l, fault := openLease(req.This)
	if fault != nil {
		return nil, fault
	}
	c.end(l, true)
	simulator.Map.Update(l, []types.PropertyChange{{Name: "state", Val: types.HttpNfcLeaseStateDone}})
	return nil, nil
}

func leaseAbort(c *center, req *types.HttpNfcLeaseAbort) (types.AnyType, types.BaseMethodFault) {
	l, fault := openLease(req.This)
	if fault != nil {
		return nil, fault
	}
	c.fail(l, &types.RequestCanceled{})
	return nil, nil
}

func leaseProgress(c *center, req *types.HttpNfcLeaseProgress) (types.AnyType, types.BaseMethodFault) {
	l, fault := openLease(req.This)
	if fault != nil {
		return nil, fault
	}
	if l.renew != nil {
		l.renew.Reset(time.Duration(l.Info.LeaseTimeout) * time.Second)
	}
	simulator.Map.Update(l, []types.PropertyChange{{Name: "transferProgress", Val: req.Percent}})
	return nil, nil
}

func leaseManifest(c *center, req *types.HttpNfcLeaseGetManifest) (types.AnyType, types.BaseMethodFault) {
	l, fault := openLease(req.This)
	if fault != nil {
		return nil, fault
	}
	entries := []types.HttpNfcLeaseManifestEntry{}
	for _, file := range l.files {
		if file.sha1 != "" {
			entries = append(entries, types.HttpNfcLeaseManifestEntry{
				Key: file.key, Sha1: file.sha1, Size: file.sent, Disk: true, Capacity: file.size})
		}
	}
	return entries, nil
}
