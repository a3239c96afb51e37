package main

import (
	"fmt"
	"path"
	"sort"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// deviceChanges are changes of devices, those of disks apart: the simulator's disks are files without content.
type deviceChanges struct {
	disks  []diskChange
	others []types.BaseVirtualDeviceConfigSpec
}

type diskChange struct {
	index int32 // in the request, for faults
	spec  *types.VirtualDeviceConfigSpec
	disk  *types.VirtualDisk
}

func reconfigVM(c *center, req *types.ReconfigVM_Task) (types.AnyType, types.BaseMethodFault) {
	vm, fault := machine(req.This)
	if fault != nil {
		return nil, fault
	}
	return c.task(req.This, "reconfigVm", func() (types.AnyType, types.BaseMethodFault) {
		return nil, c.reconfigure(vm, req)
	}), nil
}

func (c *center) reconfigure(vm *simulator.VirtualMachine, req *types.ReconfigVM_Task) types.BaseMethodFault {
	spec := &req.Spec
	if running(vm) && (spec.MemoryMB != 0 && int32(spec.MemoryMB) != vm.Config.Hardware.MemoryMB ||
		spec.NumCPUs != 0 && spec.NumCPUs != vm.Config.Hardware.NumCPU ||
		spec.Firmware != "" && spec.Firmware != vm.Config.Firmware) {
		return &types.InvalidPowerState{
			RequestedState: types.VirtualMachinePowerStatePoweredOff, ExistingState: vm.Runtime.PowerState}
	}
	if spec.Name != "" && spec.Name != vm.Name {
		folder := simulator.Map.Get(*vm.Parent).(*simulator.Folder)
		if taken := simulator.Map.FindByName(spec.Name, folder.ChildEntity); taken != nil {
			return &types.DuplicateName{Name: spec.Name, Object: taken.Reference()}
		}
	}
	devices, fault := c.arrange(vm.Config.Hardware.Device, spec.DeviceChange)
	if fault != nil {
		return fault
	}
	extra := spec.ExtraConfig
	spec.DeviceChange, spec.ExtraConfig = devices.others, nil
	if _, fault := outcome(vm.ReconfigVMTask(fromInside(), req)); fault != nil {
		return fault
	}
	if fault := c.changeDisks(vm, devices.disks); fault != nil {
		return fault
	}
	setExtraConfig(vm, extra)
	if tracked := spec.ChangeTrackingEnabled; tracked != nil && !*tracked {
		for file := range c.links(vm) {
			c.tracking.reset(c.disks.base(file))
		}
	}
	c.refresh(vm)
	return nil
}

// refresh brings what follows from the devices of a VM up to date.
func (c *center) refresh(vm *simulator.VirtualMachine) {
	devices := vm.Config.Hardware.Device
	// The simulator puts a device that was edited at the end.
	sort.SliceStable(devices, func(i, j int) bool {
		return devices[i].GetVirtualDevice().Key < devices[j].GetVirtualDevice().Key
	})
	var cards int32
	vm.Network = nil
	for _, device := range devices {
		card, ok := device.(types.BaseVirtualEthernetCard)
		if !ok {
			continue
		}
		cards++
		if backing, ok := card.GetVirtualEthernetCard().Backing.(*types.VirtualEthernetCardNetworkBackingInfo); ok {
			if ref := backing.Network; ref != nil && simulator.FindReference(vm.Network, *ref) == nil {
				vm.Network = append(vm.Network, *ref)
			}
		}
	}
	vm.Datastore = nil
	for file := range c.links(vm) {
		useDatastore(vm, file)
	}
	useDatastore(vm, vm.Config.Files.VmPathName)
	simulator.Map.Update(vm, []types.PropertyChange{
		{Name: "config.hardware.device", Val: devices},
		{Name: "summary.config.numVirtualDisks", Val: int32(len(virtualDisks(devices)))},
		{Name: "summary.config.numEthernetCards", Val: cards},
	})
	c.saveConfiguration(vm)
	listVMsOfNetworks()
}

func useDatastore(vm *simulator.VirtualMachine, file string) {
	var where object.DatastorePath
	where.FromString(file)
	store := datastore(where.Datastore)
	if store == nil {
		return
	}
	if simulator.FindReference(vm.Datastore, store.Self) == nil {
		vm.Datastore = append(vm.Datastore, store.Self)
	}
	if simulator.FindReference(store.Vm, vm.Self) == nil {
		store.Vm = append(store.Vm, vm.Self)
	}
}

// arrange checks changes of devices as far as can be done before any is carried out, gives new devices the keys and
// labels that a vCenter would, and sets disks apart.
func (c *center) arrange(
	have []types.BaseVirtualDevice, changes []types.BaseVirtualDeviceConfigSpec,
) (*deviceChanges, types.BaseMethodFault) {
	result := &deviceChanges{}
	devices := append(object.VirtualDeviceList{}, have...)
	given := map[int32]int32{} // keys of new devices by the negative ones of the request
	for i, change := range changes {
		spec := change.GetVirtualDeviceConfigSpec()
		invalid := &types.InvalidDeviceSpec{DeviceIndex: int32(i)}
		invalid.Property = fmt.Sprintf("deviceChange[%d]", i)
		device := spec.Device.GetVirtualDevice()
		if spec.Operation == types.VirtualDeviceConfigSpecOperationAdd {
			if key, ok := given[device.ControllerKey]; ok {
				device.ControllerKey = key
			}
			asked := device.Key
			if !place(devices, spec.Device) {
				return nil, invalid
			}
			if asked != device.Key {
				given[asked] = device.Key
			}
			devices = append(devices, spec.Device)
		} else {
			found := devices.FindByKey(device.Key)
			if found == nil {
				return nil, invalid
			}
			if spec.Operation == types.VirtualDeviceConfigSpecOperationRemove {
				spec.Device = found // a client may give no more than the key
				for j := range devices {
					if devices[j].GetVirtualDevice().Key == device.Key {
						devices = append(devices[:j:j], devices[j+1:]...)
						break
					}
				}
			} else if device.DeviceInfo == nil {
				device.DeviceInfo = &types.Description{Label: found.GetVirtualDevice().DeviceInfo.GetDescription().Label}
			}
		}
		switch one := spec.Device.(type) {
		case *types.VirtualDisk:
			if fault := c.checkDisk(one, spec, int32(i)); fault != nil {
				return nil, fault
			}
			result.disks = append(result.disks, diskChange{int32(i), spec, one})
			continue
		case types.BaseVirtualEthernetCard:
			backing, ok := one.GetVirtualEthernetCard().Backing.(*types.VirtualEthernetCardNetworkBackingInfo)
			if !ok || network(backing.DeviceName) == nil {
				return nil, invalid
			}
		}
		result.others = append(result.others, change)
	}
	return result, nil
}

// place gives a new device its key, and a label; it returns false if there is no place for it.
func place(have object.VirtualDeviceList, added types.BaseVirtualDevice) bool {
	device := added.GetVirtualDevice()
	label := ""
	count := func(kind interface{}) int { return len(have.SelectByType(kind.(types.BaseVirtualDevice))) }
	if controller, ok := added.(types.BaseVirtualController); ok {
		bus := controller.GetVirtualController().BusNumber
		key, name := int32(0), ""
		switch added.(type) {
		case types.BaseVirtualSCSIController:
			key, name = 1000, "SCSI"
		case types.BaseVirtualSATAController:
			key, name = 15000, "SATA"
		case *types.VirtualNVMEController:
			key, name = 31000, "NVME"
		default:
			return true // IDE and all others: every VM has them, the simulator sees to that
		}
		if have.FindByKey(key+bus) != nil {
			return false
		}
		device.Key, label = key+bus, fmt.Sprintf("%s controller %d", name, bus)
	} else if _, ok := added.(types.BaseVirtualEthernetCard); ok {
		device.Key = free(have, 4000)
		label = fmt.Sprintf("Network adapter %d", device.Key-3999)
	} else {
		controller := have.FindByKey(device.ControllerKey)
		key := int32(0)
		if device.UnitNumber != nil {
			key = *device.UnitNumber
		}
		switch at := controller.(type) {
		case types.BaseVirtualSCSIController:
			key += 2000 + 16*at.GetVirtualSCSIController().BusNumber
		case types.BaseVirtualSATAController:
			key += 16000 + 30*at.(types.BaseVirtualController).GetVirtualController().BusNumber
		case *types.VirtualNVMEController:
			key += 32000 + 15*at.BusNumber
		case *types.VirtualIDEController:
			key += 3000 + 2*at.BusNumber
		}
		switch added.(type) {
		case *types.VirtualDisk:
			if controller == nil && !ide(device.ControllerKey) || device.UnitNumber == nil || taken(have, device) {
				return false
			}
			label = fmt.Sprintf("Hard disk %d", count((*types.VirtualDisk)(nil))+1)
		case *types.VirtualCdrom:
			label = fmt.Sprintf("CD/DVD drive %d", count((*types.VirtualCdrom)(nil))+1)
		}
		if key < 2000 {
			key += 3000
		}
		device.Key = free(have, key)
	}
	if device.DeviceInfo == nil && label != "" {
		device.DeviceInfo = &types.Description{Label: label}
	}
	return true
}

// ide tells whether a key is that of a controller which every VM has, and a VM that is just made will have.
func ide(key int32) bool { return key == 200 || key == 201 }

func taken(have object.VirtualDeviceList, added *types.VirtualDevice) bool {
	for _, other := range have {
		device := other.GetVirtualDevice()
		if device.ControllerKey == added.ControllerKey && device.UnitNumber != nil &&
			*device.UnitNumber == *added.UnitNumber {
			return true
		}
	}
	return false
}

// free returns the first free key from the given one on.
func free(have object.VirtualDeviceList, key int32) int32 {
	for have.FindByKey(key) != nil {
		key++
	}
	return key
}

func (c *center) checkDisk(
	disk *types.VirtualDisk, spec *types.VirtualDeviceConfigSpec, index int32,
) types.BaseMethodFault {
	backing, ok := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
	if !ok {
		return &types.InvalidDeviceBacking{InvalidDeviceSpec: types.InvalidDeviceSpec{DeviceIndex: index}}
	}
	if spec.Operation != types.VirtualDeviceConfigSpecOperationAdd {
		return nil
	}
	var where object.DatastorePath
	where.FromString(backing.FileName)
	if where.Datastore != "" && datastore(where.Datastore) == nil {
		return &types.InvalidDatastore{Name: where.Datastore}
	}
	if spec.FileOperation == "" {
		_, fault := readDescriptor(backing.FileName)
		return fault
	}
	if bytesOf(disk) <= 0 {
		return &types.InvalidDeviceSpec{DeviceIndex: index}
	}
	return nil
}

func (c *center) changeDisks(vm *simulator.VirtualMachine, changes []diskChange) types.BaseMethodFault {
	for _, change := range changes {
		var fault types.BaseMethodFault
		switch change.spec.Operation {
		case types.VirtualDeviceConfigSpecOperationAdd:
			fault = c.addDisk(vm, change)
		case types.VirtualDeviceConfigSpecOperationEdit:
			fault = c.editDisk(vm, change)
		case types.VirtualDeviceConfigSpecOperationRemove:
			c.removeDisk(vm, change)
		}
		if fault != nil {
			return fault
		}
	}
	c.refresh(vm)
	return nil
}

func (c *center) addDisk(vm *simulator.VirtualMachine, change diskChange) types.BaseMethodFault {
	disk, backing := change.disk, flat(change.disk)
	if change.spec.FileOperation != "" {
		backing.FileName = newDiskName(vm, backing.FileName)
		thin := backing.ThinProvisioned != nil && *backing.ThinProvisioned
		if fault := c.disks.create(backing.FileName, bytesOf(disk), thin); fault != nil {
			return fault
		}
	}
	if user := c.locker(backing.FileName); user != nil {
		return &types.FileLocked{FileFault: types.FileFault{File: backing.FileName}}
	}
	if fault := c.describeDisk(disk); fault != nil {
		return fault
	}
	vm.Config.Hardware.Device = append(vm.Config.Hardware.Device, disk)
	return nil
}

// describeDisk fills in what follows from a disk's file.
func (c *center) describeDisk(disk *types.VirtualDisk) types.BaseMethodFault {
	backing := flat(disk)
	has, fault := readDescriptor(backing.FileName)
	if fault != nil {
		return fault
	}
	disk.CapacityInBytes, disk.CapacityInKB = has.size, has.size/1024
	backing.Uuid, backing.ThinProvisioned, backing.ChangeId = has.uuid, &has.thin, ""
	backing.Parent = c.disks.parentBacking(backing)
	if backing.DiskMode == "" {
		backing.DiskMode = string(types.VirtualDiskModePersistent)
	}
	var where object.DatastorePath
	where.FromString(backing.FileName)
	if store := datastore(where.Datastore); store != nil {
		backing.Datastore = &store.Self
	}
	if disk.DeviceInfo != nil {
		disk.DeviceInfo.GetDescription().Summary = fmt.Sprintf("%d KB", disk.CapacityInKB)
	}
	return nil
}

func (c *center) editDisk(vm *simulator.VirtualMachine, change diskChange) types.BaseMethodFault {
	invalid := &types.InvalidDeviceSpec{DeviceIndex: change.index}
	disk := object.VirtualDeviceList(vm.Config.Hardware.Device).FindByKey(change.disk.Key).(*types.VirtualDisk)
	backing := flat(disk)
	if file := flat(change.disk).FileName; file != "" && file != backing.FileName {
		return invalid // not by an edit: remove the disk, and add another
	}
	size := bytesOf(change.disk)
	if size > 0 && size < disk.CapacityInBytes {
		return invalid
	}
	if size > disk.CapacityInBytes {
		if len(c.disks.chain(backing.FileName)) > 1 || len(snapshotsOf(vm)) > 0 {
			return invalid // a link cannot be larger than the one below it
		}
		if fault := c.disks.extend(backing.FileName, size); fault != nil {
			return fault
		}
		c.tracking.reset(backing.FileName)
	}
	if mode := flat(change.disk).DiskMode; mode != "" {
		backing.DiskMode = mode
	}
	return c.describeDisk(disk)
}

func (c *center) removeDisk(vm *simulator.VirtualMachine, change diskChange) {
	links := c.links(vm)
	kept := vm.Config.Hardware.Device[:0:0]
	for _, device := range vm.Config.Hardware.Device {
		if device.GetVirtualDevice().Key != change.disk.Key {
			kept = append(kept, device)
		}
	}
	vm.Config.Hardware.Device = kept
	if change.spec.FileOperation != types.VirtualDeviceConfigSpecFileOperationDestroy {
		return
	}
	still := c.links(vm) // snapshots may need it
	for file := range links {
		if !still[file] {
			c.disks.remove(file)
		}
	}
}

// newDiskName returns the name of a new disk: what is asked for, or the first free one in the VM's folder.
func newDiskName(vm *simulator.VirtualMachine, asked string) string {
	var where, home object.DatastorePath
	where.FromString(asked)
	if where.Path != "" {
		return asked
	}
	home.FromString(vm.Config.Files.VmPathName)
	if where.Datastore == "" {
		where.Datastore = home.Datastore
	}
	folder := path.Dir(home.Path)
	makeFolder(fmt.Sprintf("[%s] %s", where.Datastore, folder))
	for n := 0; ; n++ {
		name := path.Base(folder)
		if n > 0 {
			name = fmt.Sprintf("%s_%d", name, n)
		}
		file := fmt.Sprintf("[%s] %s/%s.vmdk", where.Datastore, folder, name)
		if _, fault := readDescriptor(file); fault != nil {
			return file
		}
	}
}

// virtualDisks returns the disks among devices, in order.
func virtualDisks(devices []types.BaseVirtualDevice) (result []*types.VirtualDisk) {
	for _, device := range devices {
		if disk, ok := device.(*types.VirtualDisk); ok {
			result = append(result, disk)
		}
	}
	return result
}

func flat(disk *types.VirtualDisk) *types.VirtualDiskFlatVer2BackingInfo {
	return disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
}

func bytesOf(disk *types.VirtualDisk) int64 {
	if disk.CapacityInBytes > 0 {
		return disk.CapacityInBytes
	}
	return disk.CapacityInKB * 1024
}

// slot says where a disk is attached, such as scsi0:1.
func slot(vm *simulator.VirtualMachine, disk *types.VirtualDisk, kind string) string {
	controller := object.VirtualDeviceList(vm.Config.Hardware.Device).FindByKey(disk.ControllerKey)
	bus := int32(0)
	if at, ok := controller.(types.BaseVirtualController); ok {
		bus = at.GetVirtualController().BusNumber
	}
	return fmt.Sprintf("%s%d:%d", kind, bus, *disk.UnitNumber)
}

// setExtraConfig sets options; one that is set to nothing is removed.
func setExtraConfig(vm *simulator.VirtualMachine, options []types.BaseOptionValue) {
	for _, option := range options {
		set := option.GetOptionValue()
		kept := vm.Config.ExtraConfig[:0:0]
		for _, other := range vm.Config.ExtraConfig {
			if other.GetOptionValue().Key != set.Key {
				kept = append(kept, other)
			}
		}
		if set.Value != nil && set.Value != "" {
			kept = append(kept, option)
		}
		vm.Config.ExtraConfig = kept
	}
}
