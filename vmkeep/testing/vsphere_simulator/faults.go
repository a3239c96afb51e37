package main

import (
	"errors"
	"reflect"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// injected is a fault that a test asks for.
type injected struct {
	On    string // a method of the API, or "GET /nfc", "PUT /nfc", "GET /folder", "PUT /folder"
	For   string // only for the VM or the snapshot with this id, or the path that ends so; empty for all
	Times int    // how often

	Fault      string  // the type of the fault that is answered, or that the task ends with
	Hang       float64 // seconds that the task waits before it begins; below 0 it never does
	Drop       string  // the connection is closed "before" or "after" the call is carried out
	Keep       bool    // snapshots go, their disks stay: consolidation is needed
	NotQuiet   bool    // only for calls that ask for a quiesced snapshot
	Status     int     // the status that is answered instead of data
	AfterBytes int64   // the connection is closed after so many bytes of data; 0 with no status: at once
}

// injectedInto returns the fault for a call, and counts it.
func (c *center) injectedInto(call *simulator.Method) *injected {
	return c.take(call.Name, func(f *injected) bool {
		if f.Keep || f.For != "" && f.For != call.This.Value {
			return false
		}
		snapshot, ok := call.Body.(*types.CreateSnapshot_Task)
		return !f.NotQuiet || ok && snapshot.Quiesce
	})
}

// injectedAt returns the fault for a transfer, and counts it.
func (c *center) injectedAt(method, where string) *injected {
	return c.take(method, func(f *injected) bool {
		return f.For == "" || len(where) >= len(f.For) && where[len(where)-len(f.For):] == f.For
	})
}

// armed tells whether there is a fault of a kind for a VM, and counts it.
func (c *center) armed(method, vm string, kind func(*injected) bool) bool {
	return c.take(method, func(f *injected) bool { return kind(f) && (f.For == "" || f.For == vm) }) != nil
}

func (c *center) take(method string, fits func(*injected) bool) *injected {
	for i, fault := range c.faults {
		if fault.On != method || !fits(fault) {
			continue
		}
		if fault.Times--; fault.Times <= 0 {
			c.faults = append(c.faults[:i:i], c.faults[i+1:]...)
		}
		return fault
	}
	return nil
}

// inject answers a call as the fault says.
func (c *center) inject(fault *injected, call *simulator.Method) (types.AnyType, types.BaseMethodFault) {
	is, failure := faultOf(fault.Fault)
	if failure != nil {
		return nil, failure
	}
	if !isTask(call.Name) {
		return nil, is
	}
	task := newTask(call.This, call.Name, func() (types.AnyType, types.BaseMethodFault) {
		if is != nil {
			return nil, is
		}
		return c.whole(call)
	})
	if fault.Hang == 0 {
		return finish(task), nil
	}
	simulator.Map.Update(task, []types.PropertyChange{{Name: "info.state", Val: types.TaskInfoStateRunning}})
	c.pending[task.Self] = true
	if fault.Hang > 0 {
		time.AfterFunc(time.Duration(fault.Hang*float64(time.Second)), func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.pending[task.Self] {
				delete(c.pending, task.Self)
				finish(task)
			}
		})
	}
	return task.Self, nil
}

// whole carries out a call with its task, and returns the result of that.
func (c *center) whole(call *simulator.Method) (types.AnyType, types.BaseMethodFault) {
	var value types.AnyType
	var fault types.BaseMethodFault
	if own := ours[call.Name]; own != nil {
		value, fault = own(c, call.Body)
	} else {
		return c.stock(call.Body)
	}
	if fault != nil {
		return nil, fault
	}
	task := simulator.Map.Get(value.(types.ManagedObjectReference)).(*simulator.Task)
	if task.Info.Error != nil {
		return nil, task.Info.Error.Fault
	}
	return task.Info.Result, nil
}

func isTask(name string) bool { return len(name) > 5 && name[len(name)-5:] == "_Task" }

// stock lets the simulator carry out a call, and returns its value, or the result of its task.
func (c *center) stock(body interface{}) (types.AnyType, types.BaseMethodFault) {
	object := simulator.Map.Get(entityOf(body))
	if object == nil {
		return nil, &types.ManagedObjectNotFound{Obj: entityOf(body)}
	}
	name := reflect.TypeOf(body).Elem().Name()
	if isTask(name) {
		name = name[:len(name)-5] + "Task"
	}
	found := reflect.ValueOf(object).MethodByName(name)
	if !found.IsValid() {
		return nil, &types.MethodNotFound{Receiver: entityOf(body), Method: name}
	}
	arguments := []reflect.Value{reflect.ValueOf(body)}
	if found.Type().NumIn() == 2 {
		arguments = append([]reflect.Value{reflect.ValueOf(fromInside())}, arguments...)
	}
	return outcome(found.Call(arguments)[0].Interface().(soap.HasFault))
}

// faultOf makes a fault of a type's name; nil for no name.
func faultOf(name string) (types.BaseMethodFault, types.BaseMethodFault) {
	if name == "" {
		return nil, nil
	}
	kind, ok := types.TypeFunc()(name)
	if !ok {
		return nil, &types.InvalidArgument{InvalidProperty: "injected fault " + name}
	}
	fault, ok := reflect.New(kind).Interface().(types.BaseMethodFault)
	if !ok {
		return nil, &types.InvalidArgument{InvalidProperty: "injected fault " + name}
	}
	return fault, nil
}

func errorOf(fault types.BaseMethodFault) error { return errors.New(text(fault)) }
