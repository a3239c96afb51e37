package main

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
	vimxml "github.com/vmware/govmomi/vim25/xml"
)

// machine returns a VM.
func machine(ref types.ManagedObjectReference) (*simulator.VirtualMachine, types.BaseMethodFault) {
	vm, ok := simulator.Map.Get(ref).(*simulator.VirtualMachine)
	if !ok {
		return nil, &types.ManagedObjectNotFound{Obj: ref}
	}
	return vm, nil
}

func running(vm *simulator.VirtualMachine) bool {
	return vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff
}

func createVM(c *center, req *types.CreateVM_Task) (types.AnyType, types.BaseMethodFault) {
	return c.task(req.This, "createVm", func() (types.AnyType, types.BaseMethodFault) { return c.createVM(req) }), nil
}

func (c *center) createVM(req *types.CreateVM_Task) (types.AnyType, types.BaseMethodFault) {
	folder, ok := simulator.Map.Get(req.This).(*simulator.Folder)
	if !ok {
		return nil, &types.ManagedObjectNotFound{Obj: req.This}
	}
	if _, ok := simulator.Map.Get(req.Pool).(mo.Entity); !ok {
		return nil, &types.ManagedObjectNotFound{Obj: req.Pool}
	}
	if taken := simulator.Map.FindByName(req.Config.Name, folder.ChildEntity); taken != nil {
		return nil, &types.DuplicateName{Name: req.Config.Name, Object: taken.Reference()}
	}
	if req.Config.Files == nil {
		return nil, &types.InvalidVmConfig{Property: "configSpec.files.vmPathName"}
	}
	var where object.DatastorePath
	where.FromString(req.Config.Files.VmPathName)
	if datastore(where.Datastore) == nil {
		return nil, &types.InvalidDatastore{Name: where.Datastore}
	}
	devices, fault := c.arrange(nil, req.Config.DeviceChange)
	if fault != nil {
		return nil, fault
	}
	extra := req.Config.ExtraConfig
	req.Config.DeviceChange, req.Config.ExtraConfig = devices.others, nil
	value, fault := outcome(folder.CreateVMTask(fromInside(), req))
	if fault != nil {
		return nil, fault
	}
	vm, fault := machine(value.(types.ManagedObjectReference))
	if fault != nil {
		return nil, fault
	}
	if fault := c.changeDisks(vm, devices.disks); fault != nil {
		c.destroy(vm)
		return nil, fault
	}
	setExtraConfig(vm, extra)
	c.saveConfiguration(vm)
	listVMsOfNetworks()
	return vm.Self, nil
}

func destroy(c *center, body interface{}) (types.AnyType, types.BaseMethodFault) {
	req := body.(*types.Destroy_Task)
	return c.task(req.This, "destroy", func() (types.AnyType, types.BaseMethodFault) {
		vm, fault := machine(req.This)
		if fault != nil {
			return c.stock(req)
		}
		return nil, c.destroy(vm)
	}), nil
}

// destroy deletes a VM with its disks. As with a vCenter, other files in its folder stay.
func (c *center) destroy(vm *simulator.VirtualMachine) types.BaseMethodFault {
	links := c.links(vm)
	snapshots := snapshotsOf(vm)
	if _, fault := outcome(vm.UnregisterVM(fromInside(), &types.UnregisterVM{This: vm.Self})); fault != nil {
		return fault
	}
	for _, ref := range snapshots {
		simulator.Map.Remove(ref)
	}
	for file := range links {
		c.disks.remove(file)
	}
	home := path.Dir(local(vm.Config.Files.VmPathName))
	for _, pattern := range []string{"*.vmx", "*.nvram", "*.log", "*.vmsn"} {
		files, _ := filepath.Glob(path.Join(home, pattern))
		for _, file := range files {
			_ = os.Remove(file)
		}
	}
	_ = os.Remove(home) // only when it is empty
	listVMsOfNetworks()
	return nil
}

// unregistered is a VM that left the inventory; its files are still there.
type unregistered struct {
	config    types.VirtualMachineConfigInfo
	snapshot  *types.VirtualMachineSnapshotInfo
	snapshots map[types.ManagedObjectReference]types.VirtualMachineConfigInfo
}

func unregisterVM(c *center, req *types.UnregisterVM) (types.AnyType, types.BaseMethodFault) {
	vm, fault := machine(req.This)
	if fault != nil {
		return nil, fault
	}
	kept := &unregistered{
		snapshot:  vm.Snapshot,
		snapshots: map[types.ManagedObjectReference]types.VirtualMachineConfigInfo{},
	}
	deepCopy(vm.Config, &kept.config)
	if value, fault := outcome(vm.UnregisterVM(fromInside(), req)); fault != nil {
		return value, fault
	}
	for _, ref := range snapshotsOf(vm) {
		kept.snapshots[ref] = simulator.Map.Get(ref).(*simulator.VirtualMachineSnapshot).Config
		simulator.Map.Remove(ref)
	}
	c.removed[kept.config.Files.VmPathName] = kept
	listVMsOfNetworks()
	return nil, nil
}

func registerVM(c *center, req *types.RegisterVM_Task) (types.AnyType, types.BaseMethodFault) {
	return c.task(req.This, "registerVm", func() (types.AnyType, types.BaseMethodFault) { return c.registerVM(req) }), nil
}

// registerVM takes a VM back into the inventory as it was when it left it.
func (c *center) registerVM(req *types.RegisterVM_Task) (types.AnyType, types.BaseMethodFault) {
	kept, ok := c.removed[req.Path]
	if _, err := os.Stat(local(req.Path)); !ok || err != nil {
		return nil, &types.NotFound{}
	}
	folder, ok := simulator.Map.Get(req.This).(*simulator.Folder)
	if !ok {
		return nil, &types.ManagedObjectNotFound{Obj: req.This}
	}
	if req.Name == "" {
		req.Name = kept.config.Name
	}
	if taken := simulator.Map.FindByName(req.Name, folder.ChildEntity); taken != nil {
		return nil, &types.DuplicateName{Name: req.Name, Object: taken.Reference()}
	}
	// The simulator looks for this file under the new name.
	nvram := path.Join(path.Dir(local(req.Path)), req.Name+".nvram")
	if err := os.WriteFile(nvram, nil, 0600); err != nil {
		return nil, &types.CannotCreateFile{FileFault: types.FileFault{File: req.Path}}
	}
	value, fault := outcome(folder.RegisterVMTask(fromInside(), req))
	if fault != nil {
		return nil, fault
	}
	vm, fault := machine(value.(types.ManagedObjectReference))
	if fault != nil {
		return nil, fault
	}
	delete(c.removed, req.Path)
	config := kept.config
	config.Name = req.Name
	vm.Config = &config
	vm.Summary.Config.MemorySizeMB = config.Hardware.MemoryMB
	vm.Summary.Config.NumCpu = config.Hardware.NumCPU
	vm.Summary.Config.Uuid, vm.Summary.Config.InstanceUuid = config.Uuid, config.InstanceUuid
	if kept.snapshot != nil {
		for ref, config := range kept.snapshots {
			snapshot := &simulator.VirtualMachineSnapshot{}
			snapshot.Self, snapshot.Vm, snapshot.Config = ref, vm.Self, config
			simulator.Map.Put(snapshot)
		}
		vm.Snapshot = kept.snapshot
		ownSnapshots(vm.Snapshot.RootSnapshotList, vm.Self)
	}
	c.refresh(vm)
	return vm.Self, nil
}

func powerOn(c *center, req *types.PowerOnVM_Task) (types.AnyType, types.BaseMethodFault) {
	return c.power(req.This, "powerOn", func(vm *simulator.VirtualMachine) types.BaseMethodFault {
		for _, disk := range virtualDisks(vm.Config.Hardware.Device) {
			backing := flat(disk)
			if _, err := os.Stat(c.disks.raw(backing.FileName)); err != nil {
				return &types.FileNotFound{FileFault: types.FileFault{File: backing.FileName}}
			}
			if user := c.locker(backing.FileName); user != nil && user != vm {
				return &types.FileLocked{FileFault: types.FileFault{File: backing.FileName}}
			}
		}
		_, fault := outcome(vm.PowerOnVMTask(fromInside(), req))
		return fault
	})
}

func powerOff(c *center, req *types.PowerOffVM_Task) (types.AnyType, types.BaseMethodFault) {
	return c.power(req.This, "powerOff", func(vm *simulator.VirtualMachine) types.BaseMethodFault {
		_, fault := outcome(vm.PowerOffVMTask(fromInside(), req))
		return fault
	})
}

func (c *center) power(
	ref types.ManagedObjectReference, name string, change func(*simulator.VirtualMachine) types.BaseMethodFault,
) (types.AnyType, types.BaseMethodFault) {
	vm, fault := machine(ref)
	if fault != nil {
		return nil, fault
	}
	return c.task(ref, name, func() (types.AnyType, types.BaseMethodFault) {
		if fault := change(vm); fault != nil {
			return nil, fault
		}
		c.showGuest(vm)
		return nil, nil
	}), nil
}

// locker returns the running VM that a link is open in; nil if there is none.
func (c *center) locker(file string) *simulator.VirtualMachine {
	for _, entity := range simulator.Map.All("VirtualMachine") {
		vm := entity.(*simulator.VirtualMachine)
		if !running(vm) {
			continue
		}
		for _, disk := range virtualDisks(vm.Config.Hardware.Device) {
			for _, link := range c.disks.chain(flat(disk).FileName) {
				if link == file {
					return vm
				}
			}
		}
	}
	return nil
}

// saveConfiguration writes the VM's configuration file, for people and for those who save it.
func (c *center) saveConfiguration(vm *simulator.VirtualMachine) {
	var lines strings.Builder
	line := func(key string, value interface{}) { fmt.Fprintf(&lines, "%s = \"%v\"\n", key, value) }
	line(".encoding", "UTF-8")
	line("config.version", "8")
	line("displayName", vm.Config.Name)
	line("guestOS", vm.Config.GuestId)
	line("memSize", vm.Config.Hardware.MemoryMB)
	line("numvcpus", vm.Config.Hardware.NumCPU)
	line("firmware", vm.Config.Firmware)
	line("uuid.bios", vm.Config.Uuid)
	line("vc.uuid", vm.Config.InstanceUuid)
	for _, disk := range virtualDisks(vm.Config.Hardware.Device) {
		line(slot(vm, disk, "scsi")+".fileName", path.Base(flat(disk).FileName))
	}
	for _, option := range vm.Config.ExtraConfig {
		line(option.GetOptionValue().Key, option.GetOptionValue().Value)
	}
	_ = os.WriteFile(local(vm.Config.Files.VmPathName), []byte(lines.String()), 0600)
}

// deepCopy copies a value of the API with all that it points at.
func deepCopy(from, to interface{}) {
	data, err := vimxml.Marshal(from)
	if err != nil {
		panic(err)
	}
	decoder := vimxml.NewDecoder(bytes.NewReader(data))
	decoder.TypeFunc = types.TypeFunc()
	if err := decoder.Decode(to); err != nil {
		panic(err)
	}
}
