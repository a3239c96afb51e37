package main

import (
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// guest is how the guest of a VM is while it runs.
type guest struct {
	Tools     bool   // whether VMware Tools answer
	Heartbeat string // gray, green, yellow, red
	Address   string
	Hostname  string
}

// showGuest lets a VM show what its guest would report.
func (c *center) showGuest(vm *simulator.VirtualMachine) {
	has := c.guests[vm.Name]
	if !running(vm) {
		has = guest{}
	}
	status, tools := types.VirtualMachineToolsStatusToolsNotRunning, "guestToolsNotRunning"
	if has.Tools {
		status, tools = types.VirtualMachineToolsStatusToolsOk, "guestToolsRunning"
	}
	if has.Heartbeat == "" {
		has.Heartbeat = "gray"
	}
	simulator.Map.Update(vm, []types.PropertyChange{
		{Name: "guest.toolsStatus", Val: status},
		{Name: "guest.toolsRunningStatus", Val: tools},
		{Name: "guest.guestState", Val: map[bool]string{true: "running", false: "notRunning"}[has.Tools]},
		{Name: "guest.ipAddress", Val: has.Address},
		{Name: "guest.hostName", Val: has.Hostname},
		{Name: "guestHeartbeatStatus", Val: types.ManagedEntityStatus(has.Heartbeat)},
		{Name: "summary.quickStats.guestHeartbeatStatus", Val: types.ManagedEntityStatus(has.Heartbeat)},
		{Name: "summary.guest.toolsStatus", Val: status},
		{Name: "summary.guest.toolsRunningStatus", Val: tools},
		{Name: "summary.guest.ipAddress", Val: has.Address},
		{Name: "summary.guest.hostName", Val: has.Hostname},
	})
}
