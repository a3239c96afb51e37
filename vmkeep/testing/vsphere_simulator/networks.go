package main

import (
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

func datacenter() *simulator.Datacenter {
	return simulator.Map.Any("Datacenter").(*simulator.Datacenter)
}

// network returns the network of a name; nil if there is none.
func network(name string) *mo.Network {
	for _, entity := range simulator.Map.All("Network") {
		if found, ok := entity.(*mo.Network); ok && found.Name == name {
			return found
		}
	}
	return nil
}

// addNetworks makes port groups on all hosts.
func (c *center) addNetworks(names ...string) error {
	for _, entity := range simulator.Map.All("HostSystem") {
		system := *entity.(*simulator.HostSystem).ConfigManager.NetworkSystem
		for _, name := range names {
			group := types.HostPortGroupSpec{Name: name, VswitchName: "vSwitch0"}
			if _, fault := addPortGroup(c, &types.AddPortGroup{This: system, Portgrp: group}); fault != nil {
				return errorOf(fault)
			}
		}
	}
	return nil
}

// addPortGroup adds a port group to a host. As with a vCenter, port groups of one name are one network.
func addPortGroup(c *center, req *types.AddPortGroup) (types.AnyType, types.BaseMethodFault) {
	system, ok := simulator.Map.Get(req.This).(*simulator.HostNetworkSystem)
	if !ok {
		return nil, &types.ManagedObjectNotFound{Obj: req.This}
	}
	for _, group := range system.NetworkInfo.Portgroup {
		if group.Spec.Name == req.Portgrp.Name {
			return nil, &types.AlreadyExists{Name: req.Portgrp.Name}
		}
	}
	if found := network(req.Portgrp.Name); found != nil {
		for i, vswitch := range system.NetworkInfo.Vswitch {
			if vswitch.Name != req.Portgrp.VswitchName {
				continue
			}
			groups := &system.NetworkInfo.Vswitch[i].Portgroup
			*groups = append(append([]string{}, *groups...), req.Portgrp.Name)
			system.NetworkInfo.Portgroup = append(append([]types.HostPortGroup{}, system.NetworkInfo.Portgroup...),
				types.HostPortGroup{Key: "key-vim.host.PortGroup-" + req.Portgrp.Name, Spec: req.Portgrp})
			listHostsOfNetworks()
			return nil, nil
		}
		return nil, &types.NotFound{}
	}
	value, fault := outcome(system.AddPortGroup(fromInside(), req))
	listHostsOfNetworks()
	return value, fault
}

func removePortGroup(c *center, req *types.RemovePortGroup) (types.AnyType, types.BaseMethodFault) {
	system, ok := simulator.Map.Get(req.This).(*simulator.HostNetworkSystem)
	if !ok {
		return nil, &types.ManagedObjectNotFound{Obj: req.This}
	}
	found := network(req.PgName)
	if found == nil || simulator.FindReference(found.Host, system.Host.Self) == nil {
		return nil, &types.NotFound{}
	}
	for _, ref := range found.Vm {
		if vm, fault := machine(ref); fault == nil && *vm.Runtime.Host == system.Host.Self {
			return nil, &types.ResourceInUse{Type: "Network", Name: req.PgName}
		}
	}
	if len(found.Host) == 1 {
		value, fault := outcome(system.RemovePortGroup(fromInside(), req))
		listHostsOfNetworks()
		return value, fault
	}
	for i := range system.NetworkInfo.Vswitch {
		groups := &system.NetworkInfo.Vswitch[i].Portgroup
		kept := []string{}
		for _, group := range *groups {
			if group != req.PgName {
				kept = append(kept, group)
			}
		}
		*groups = kept
	}
	kept := []types.HostPortGroup{}
	for _, group := range system.NetworkInfo.Portgroup {
		if group.Spec.Name != req.PgName {
			kept = append(kept, group)
		}
	}
	system.NetworkInfo.Portgroup = kept
	listHostsOfNetworks()
	return nil, nil
}

// listHostsOfNetworks lets networks and hosts list each other.
func listHostsOfNetworks() {
	cluster := simulator.Map.Any("ClusterComputeResource").(*simulator.ClusterComputeResource)
	cluster.Network = nil
	for _, entity := range simulator.Map.All("Network") {
		if found, ok := entity.(*mo.Network); ok {
			found.Host = nil
		}
	}
	for _, entity := range simulator.Map.All("HostSystem") {
		host := entity.(*simulator.HostSystem)
		system := simulator.Map.Get(*host.ConfigManager.NetworkSystem).(*simulator.HostNetworkSystem)
		host.Network = nil
		for _, group := range system.NetworkInfo.Portgroup {
			found := network(group.Spec.Name)
			if found == nil {
				continue
			}
			host.Network = append(host.Network, found.Self)
			if simulator.FindReference(cluster.Network, found.Self) == nil {
				cluster.Network = append(cluster.Network, found.Self)
			}
			if simulator.FindReference(found.Host, host.Self) == nil {
				found.Host = append(found.Host, host.Self)
			}
		}
	}
}

// listVMsOfNetworks lets networks list the VMs that have a card in them.
func listVMsOfNetworks() {
	for _, entity := range simulator.Map.All("Network") {
		found, ok := entity.(*mo.Network)
		if !ok {
			continue
		}
		found.Vm = nil
		for _, other := range simulator.Map.All("VirtualMachine") {
			vm := other.(*simulator.VirtualMachine)
			if simulator.FindReference(vm.Network, found.Self) != nil {
				found.Vm = append(found.Vm, vm.Self)
			}
		}
	}
}
