package main

import (
	"context"
	"os"
	"path"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/types"
)

// inventory makes a vCenter with a datacenter DC0, a cluster of three hosts, and the datastores vmfs1 and vmfs2.
// It has no VMs.
func inventory(folder string) (*simulator.Model, error) {
	model := simulator.VPX()
	model.Datacenter, model.Cluster, model.ClusterHost = 1, 1, 3
	model.Host, model.Machine, model.Portgroup, model.Datastore, model.Pool = 0, 0, 0, 0, 0
	if err := model.Create(); err != nil {
		return nil, err
	}
	for _, name := range []string{"vmfs1", "vmfs2"} {
		if err := addDatastore(model, name, path.Join(folder, "datastores", name)); err != nil {
			return nil, err
		}
	}
	simulator.Map.AddHandler(&taskEntities{})
	return model, nil
}

// addDatastore makes a folder a datastore of all hosts.
func addDatastore(model *simulator.Model, name, where string) error {
	if err := os.MkdirAll(where, 0700); err != nil {
		return err
	}
	ctx := context.Background()
	client, err := vim25.NewClient(ctx, model.Service)
	if err != nil {
		return err
	}
	var mounts []types.DatastoreHostMount
	var ref types.ManagedObjectReference
	for _, entity := range simulator.Map.All("HostSystem") {
		system, err := object.NewHostSystem(client, entity.Reference()).ConfigManager().DatastoreSystem(ctx)
		if err != nil {
			return err
		}
		made, err := system.CreateLocalDatastore(ctx, name, where)
		if err != nil {
			return err
		}
		ref = made.Reference()
		mounts = append(mounts, types.DatastoreHostMount{
			Key: entity.Reference(),
			MountInfo: types.HostMountInfo{
				AccessMode: string(types.HostMountModeReadWrite),
				Mounted:    types.NewBool(true),
				Accessible: types.NewBool(true),
			},
		})
	}
	store := simulator.Map.Get(ref).(*simulator.Datastore)
	store.Host = mounts
	store.Summary.Type = "VMFS"
	store.Summary.MultipleHostAccess = types.NewBool(true)
	// The simulator makes it once for each host, and lists it as often.
	parent := simulator.Map.Get(*store.Parent).(*simulator.Folder)
	parent.ChildEntity = unique(parent.ChildEntity)
	return nil
}

func unique(refs []types.ManagedObjectReference) []types.ManagedObjectReference {
	var result []types.ManagedObjectReference
	for _, ref := range refs {
		if simulator.FindReference(result, ref) == nil {
			result = append(result, ref)
		}
	}
	return result
}
