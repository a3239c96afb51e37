package main

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// task does the work in a task of *entity*, and returns the task; it is over then.
func (c *center) task(
	entity types.ManagedObjectReference, name string, run func() (types.AnyType, types.BaseMethodFault),
) types.ManagedObjectReference {
	return finish(newTask(entity, name, run))
}

func newTask(
	entity types.ManagedObjectReference, name string, run func() (types.AnyType, types.BaseMethodFault),
) *simulator.Task {
	return simulator.CreateTask(entity, name, func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		return guarded(name, run)
	})
}

// finish runs a task.
func finish(task *simulator.Task) types.ManagedObjectReference {
	ref := task.Run()
	if task.Info.Error != nil {
		task.Info.Error.LocalizedMessage = text(task.Info.Error.Fault)
	}
	return ref
}

// cancelTask ends a task that has not begun; what runs here cannot be interrupted.
func cancelTask(c *center, req *types.CancelTask) (types.AnyType, types.BaseMethodFault) {
	task, ok := simulator.Map.Get(req.This).(*simulator.Task)
	if !ok {
		return nil, &types.ManagedObjectNotFound{Obj: req.This}
	}
	if !c.pending[req.This] {
		return nil, &types.InvalidState{}
	}
	delete(c.pending, req.This)
	task.Execute = func(*simulator.Task) (types.AnyType, types.BaseMethodFault) { return nil, &types.RequestCanceled{} }
	finish(task)
	return nil, nil
}

// taskEntities keeps objects out of tasks that are no managed entities: the simulator puts snapshots and
// managers there, and no client can read that.
type taskEntities struct{}

func (*taskEntities) Reference() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "TaskEntities", Value: "TaskEntities"}
}

func (*taskEntities) PutObject(object mo.Reference) {
	task, ok := object.(*simulator.Task)
	if !ok || task.Info.Entity == nil {
		return
	}
	if _, ok := simulator.Map.Get(*task.Info.Entity).(mo.Entity); ok {
		return
	}
	if snapshot, ok := simulator.Map.Get(*task.Info.Entity).(*simulator.VirtualMachineSnapshot); ok {
		task.Info.Entity = &snapshot.Vm
		return
	}
	task.Info.Entity = nil
}

func (*taskEntities) UpdateObject(mo.Reference, []types.PropertyChange) {}
func (*taskEntities) RemoveObject(types.ManagedObjectReference)         {}

// text says in words what a fault says in fields.
func text(fault types.BaseMethodFault) string {
	kind := reflect.TypeOf(fault).Elem().Name()
	if file, ok := fault.(types.BaseFileFault); ok {
		return fmt.Sprintf("%s: error caused by file %s", kind, file.GetFileFault().File)
	}
	switch f := fault.(type) {
	case *types.DuplicateName:
		return fmt.Sprintf("The name '%s' already exists.", f.Name)
	case *types.InvalidPowerState:
		return fmt.Sprintf("The attempted operation cannot be performed in the current state (%s).", f.ExistingState)
	case *types.InvalidDeviceSpec:
		return fmt.Sprintf("Invalid configuration for device '%d'.", f.DeviceIndex)
	case *types.InvalidDatastore:
		return fmt.Sprintf("Invalid datastore '%s'.", f.Name)
	case *types.InvalidArgument:
		return fmt.Sprintf("A specified parameter was not correct: %s", f.InvalidProperty)
	case *types.ManagedObjectNotFound:
		return fmt.Sprintf("The object '%s' has already been deleted or has not been completely created", f.Obj.Value)
	case *types.SystemError:
		return "A general system error occurred: " + f.Reason
	}
	var words strings.Builder
	for i, letter := range kind {
		if i > 0 && letter >= 'A' && letter <= 'Z' {
			words.WriteByte(' ')
		}
		words.WriteRune(letter)
	}
	return words.String() + "."
}
