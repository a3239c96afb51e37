package main

import (
	"log"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// snapshotsOf returns all snapshots of a VM.
func snapshotsOf(vm *simulator.VirtualMachine) (result []types.ManagedObjectReference) {
	if vm.Snapshot == nil {
		return nil
	}
	var walk func([]types.VirtualMachineSnapshotTree)
	walk = func(tree []types.VirtualMachineSnapshotTree) {
		for _, node := range tree {
			result = append(result, node.Snapshot)
			walk(node.ChildSnapshotList)
		}
	}
	walk(vm.Snapshot.RootSnapshotList)
	return result
}

func ownSnapshots(tree []types.VirtualMachineSnapshotTree, vm types.ManagedObjectReference) {
	for i := range tree {
		tree[i].Vm = vm
		ownSnapshots(tree[i].ChildSnapshotList, vm)
	}
}

// users returns the disks of a VM and of all its snapshots.
func users(vm *simulator.VirtualMachine) []*types.VirtualDisk {
	result := virtualDisks(vm.Config.Hardware.Device)
	for _, ref := range snapshotsOf(vm) {
		if snapshot, ok := simulator.Map.Get(ref).(*simulator.VirtualMachineSnapshot); ok {
			result = append(result, virtualDisks(snapshot.Config.Hardware.Device)...)
		}
	}
	return result
}

// links returns the files of all links that a VM and its snapshots need.
func (c *center) links(vm *simulator.VirtualMachine) map[string]bool {
	result := map[string]bool{}
	for _, disk := range users(vm) {
		for _, file := range c.disks.chain(flat(disk).FileName) {
			result[file] = true
		}
	}
	return result
}

func createSnapshot(c *center, req *types.CreateSnapshot_Task) (types.AnyType, types.BaseMethodFault) {
	vm, fault := machine(req.This)
	if fault != nil {
		return nil, fault
	}
	return c.task(req.This, "createSnapshot", func() (types.AnyType, types.BaseMethodFault) {
		return c.createSnapshot(vm, req)
	}), nil
}

// createSnapshot freezes the disks of a VM; it goes on with delta disks above them.
func (c *center) createSnapshot(
	vm *simulator.VirtualMachine, req *types.CreateSnapshot_Task,
) (types.AnyType, types.BaseMethodFault) {
	// Without a guest to ask the flag is ignored. See: vSphere API, CreateSnapshot_Task.
	req.Quiesce = req.Quiesce && running(vm) && c.guests[vm.Name].Tools
	value, fault := outcome(vm.CreateSnapshotTask(req))
	if fault != nil {
		return nil, fault
	}
	snapshot := simulator.Map.Get(value.(types.ManagedObjectReference)).(*simulator.VirtualMachineSnapshot)
	// What the simulator keeps shares its devices with the VM.
	snapshot.Config = types.VirtualMachineConfigInfo{}
	deepCopy(vm.Config, &snapshot.Config)
	tracked := vm.Config.ChangeTrackingEnabled != nil && *vm.Config.ChangeTrackingEnabled
	frozen := virtualDisks(snapshot.Config.Hardware.Device)
	for i, disk := range virtualDisks(vm.Config.Hardware.Device) {
		backing := flat(disk)
		if strings.HasPrefix(backing.DiskMode, "independent") {
			continue // no part of snapshots
		}
		if tracked {
			id, err := c.tracking.mark(c.disks.base(backing.FileName), c.disks.raw(backing.FileName))
			if err != nil {
				log.Print(err)
				return nil, &types.FileFault{File: backing.FileName}
			}
			flat(frozen[i]).ChangeId = id
		}
		delta, fault := c.disks.delta(backing.FileName)
		if fault != nil {
			return nil, fault
		}
		backing.FileName = delta
	}
	c.showChains(vm)
	return value, nil
}

// showChains lets the devices of a VM and its snapshots show the links that there are.
func (c *center) showChains(vm *simulator.VirtualMachine) {
	for _, disk := range users(vm) {
		backing := flat(disk)
		backing.Parent = c.disks.parentBacking(backing)
	}
	c.refresh(vm)
}

func removeSnapshot(c *center, req *types.RemoveSnapshot_Task) (types.AnyType, types.BaseMethodFault) {
	snapshot, ok := simulator.Map.Get(req.This).(*simulator.VirtualMachineSnapshot)
	if !ok {
		return nil, &types.ManagedObjectNotFound{Obj: req.This}
	}
	keep := c.armed("RemoveSnapshot_Task", snapshot.Vm.Value, func(f *injected) bool { return f.Keep })
	return c.task(snapshot.Vm, "removeSnapshot", func() (types.AnyType, types.BaseMethodFault) {
		vm, fault := machine(snapshot.Vm)
		if fault != nil {
			return nil, fault
		}
		before := c.links(vm)
		if _, fault := outcome(snapshot.RemoveSnapshotTask(fromInside(), req)); fault != nil {
			return nil, fault
		}
		if keep || req.Consolidate != nil && !*req.Consolidate {
			needsConsolidation(vm, true)
			if keep {
				return nil, &types.FileLocked{FileFault: types.FileFault{File: vm.Config.Files.VmPathName}}
			}
			return nil, nil
		}
		return nil, c.consolidate(vm, before)
	}), nil
}

func removeAllSnapshots(c *center, req *types.RemoveAllSnapshots_Task) (types.AnyType, types.BaseMethodFault) {
	vm, fault := machine(req.This)
	if fault != nil {
		return nil, fault
	}
	return c.task(req.This, "removeAllSnapshots", func() (types.AnyType, types.BaseMethodFault) {
		before := c.links(vm)
		if _, fault := outcome(vm.RemoveAllSnapshotsTask(fromInside(), req)); fault != nil {
			return nil, fault
		}
		return nil, c.consolidate(vm, before)
	}), nil
}

func consolidateVMDisks(c *center, req *types.ConsolidateVMDisks_Task) (types.AnyType, types.BaseMethodFault) {
	vm, fault := machine(req.This)
	if fault != nil {
		return nil, fault
	}
	return c.task(req.This, "consolidateDisks", func() (types.AnyType, types.BaseMethodFault) {
		return nil, c.consolidate(vm, c.links(vm))
	}), nil
}

// consolidate folds all links of a VM together that no snapshot needs apart; those of *before* that nobody needs
// any more are deleted.
//
//	base <── a <── b <── live        snapshots kept their disks in base, a and b; the one of a is gone:
//	base <── a' <────── live         b was folded into a, so that the snapshot of b has it there
func (c *center) consolidate(vm *simulator.VirtualMachine, before map[string]bool) types.BaseMethodFault {
	for {
		above := c.foldable(vm)
		if above == "" {
			break
		}
		below := c.disks.parents[above]
		if err := c.disks.fold(above); err != nil {
			log.Print(err)
			needsConsolidation(vm, true)
			return &types.FileFault{File: above}
		}
		for _, disk := range users(vm) {
			if flat(disk).FileName == above {
				flat(disk).FileName = below
			}
		}
	}
	needed := c.links(vm)
	for file := range before {
		if _, delta := c.disks.parents[file]; delta && !needed[file] {
			c.disks.remove(file)
		}
	}
	needsConsolidation(vm, false)
	c.showChains(vm)
	return nil
}

// foldable returns a link whose bytes can go into the one below it: nobody else needs that.
func (c *center) foldable(vm *simulator.VirtualMachine) string {
	used := map[string]bool{}
	for _, disk := range users(vm) {
		used[flat(disk).FileName] = true
	}
	children := map[string][]string{}
	for file := range c.links(vm) {
		if parent, ok := c.disks.parents[file]; ok {
			children[parent] = append(children[parent], file)
		}
	}
	for parent, above := range children {
		if len(above) == 1 && !used[parent] {
			return above[0]
		}
	}
	return ""
}

func needsConsolidation(vm *simulator.VirtualMachine, needed bool) {
	simulator.Map.Update(vm, []types.PropertyChange{
		{Name: "runtime.consolidationNeeded", Val: needed},
		{Name: "summary.runtime.consolidationNeeded", Val: needed},
	})
}

func revertToSnapshot(c *center, req *types.RevertToSnapshot_Task) (types.AnyType, types.BaseMethodFault) {
	snapshot, ok := simulator.Map.Get(req.This).(*simulator.VirtualMachineSnapshot)
	if !ok {
		return nil, &types.ManagedObjectNotFound{Obj: req.This}
	}
	return c.task(snapshot.Vm, "revertToSnapshot", func() (types.AnyType, types.BaseMethodFault) {
		return nil, c.revert(snapshot)
	}), nil
}

func revertToCurrentSnapshot(
	c *center, req *types.RevertToCurrentSnapshot_Task,
) (types.AnyType, types.BaseMethodFault) {
	vm, fault := machine(req.This)
	if fault != nil {
		return nil, fault
	}
	if vm.Snapshot == nil || vm.Snapshot.CurrentSnapshot == nil {
		return nil, &types.NotFound{}
	}
	return c.task(req.This, "revertToSnapshot", func() (types.AnyType, types.BaseMethodFault) {
		return nil, c.revert(simulator.Map.Get(*vm.Snapshot.CurrentSnapshot).(*simulator.VirtualMachineSnapshot))
	}), nil
}

// revert lets a VM go on from a snapshot; what it did since is lost.
func (c *center) revert(snapshot *simulator.VirtualMachineSnapshot) types.BaseMethodFault {
	vm, fault := machine(snapshot.Vm)
	if fault != nil {
		return fault
	}
	if _, fault := outcome(snapshot.RevertToSnapshotTask(&types.RevertToSnapshot_Task{This: snapshot.Self})); fault != nil {
		return fault
	}
	before := c.links(vm)
	config := types.VirtualMachineConfigInfo{}
	deepCopy(&snapshot.Config, &config)
	for _, disk := range virtualDisks(config.Hardware.Device) {
		backing := flat(disk)
		if strings.HasPrefix(backing.DiskMode, "independent") {
			continue
		}
		delta, fault := c.disks.delta(backing.FileName)
		if fault != nil {
			return fault
		}
		backing.FileName, backing.ChangeId = delta, ""
		c.tracking.reset(c.disks.base(delta))
	}
	vm.Config = &config
	// The memory is part of no snapshot here.
	if running(vm) {
		_, _ = outcome(vm.PowerOffVMTask(fromInside(), &types.PowerOffVM_Task{This: vm.Self}))
		c.showGuest(vm)
	}
	return c.consolidate(vm, before)
}
