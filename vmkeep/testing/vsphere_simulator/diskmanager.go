package main

import (
	"fmt"
	"os"
	"path"

	"github.com/vmware/govmomi/vim25/types"
)

func createVirtualDisk(c *center, req *types.CreateVirtualDisk_Task) (types.AnyType, types.BaseMethodFault) {
	if local(req.Name) == "" {
		return nil, &types.InvalidDatastorePath{DatastorePath: req.Name}
	}
	spec, ok := req.Spec.(*types.FileBackedVirtualDiskSpec)
	if !ok || spec.CapacityKb <= 0 {
		return nil, &types.InvalidArgument{InvalidProperty: "spec"}
	}
	thin := spec.DiskType == string(types.VirtualDiskTypeThin)
	if fault := c.disks.create(req.Name, spec.CapacityKb*1024, thin); fault != nil {
		return nil, fault
	}
	return req.Name, nil
}

// copyVirtualDisk makes a disk of one link of all that the other shows.
func copyVirtualDisk(c *center, req *types.CopyVirtualDisk_Task) (types.AnyType, types.BaseMethodFault) {
	has, fault := c.movable(req.SourceName, req.DestName, req.Force)
	if fault != nil {
		return nil, fault
	}
	has.uuid = newDiskUUID()
	if fault := c.disks.write(req.DestName, has); fault != nil {
		return nil, fault
	}
	if err := copySparse(c.disks.raw(req.SourceName), c.disks.raw(req.DestName)); err != nil {
		return nil, &types.CannotAccessFile{FileFault: types.FileFault{File: req.SourceName}}
	}
	return nil, nil
}

func moveVirtualDisk(c *center, req *types.MoveVirtualDisk_Task) (types.AnyType, types.BaseMethodFault) {
	has, fault := c.movable(req.SourceName, req.DestName, req.Force)
	if fault != nil {
		return nil, fault
	}
	if len(c.disks.chain(req.SourceName)) > 1 {
		return nil, &types.NotSupported{}
	}
	if fault := c.disks.write(req.DestName, has); fault != nil {
		return nil, fault
	}
	if err := os.Rename(c.disks.raw(req.SourceName), c.disks.raw(req.DestName)); err != nil {
		return nil, &types.CannotAccessFile{FileFault: types.FileFault{File: req.SourceName}}
	}
	_ = os.Rename(suffixed(local(req.SourceName), "-ctk"), suffixed(local(req.DestName), "-ctk"))
	c.disks.remove(req.SourceName)
	return nil, nil
}

// movable checks that a disk can be brought to another name, and returns what it is.
func (c *center) movable(from, to string, force *bool) (descriptor, types.BaseMethodFault) {
	if local(to) == "" {
		return descriptor{}, &types.InvalidDatastorePath{DatastorePath: to}
	}
	has, fault := readDescriptor(from)
	if fault != nil {
		return has, fault
	}
	if c.locker(from) != nil {
		return has, &types.FileLocked{FileFault: types.FileFault{File: from}}
	}
	if force != nil && *force {
		if c.locker(to) != nil {
			return has, &types.FileLocked{FileFault: types.FileFault{File: to}}
		}
		c.disks.remove(to)
	}
	return has, nil
}

func deleteVirtualDisk(c *center, req *types.DeleteVirtualDisk_Task) (types.AnyType, types.BaseMethodFault) {
	if _, fault := readDescriptor(req.Name); fault != nil {
		return nil, fault
	}
	if c.locker(req.Name) != nil {
		return nil, &types.FileLocked{FileFault: types.FileFault{File: req.Name}}
	}
	c.disks.remove(req.Name)
	return nil, nil
}

func extendVirtualDisk(c *center, req *types.ExtendVirtualDisk_Task) (types.AnyType, types.BaseMethodFault) {
	has, fault := readDescriptor(req.Name)
	if fault != nil {
		return nil, fault
	}
	if c.locker(req.Name) != nil {
		return nil, &types.FileLocked{FileFault: types.FileFault{File: req.Name}}
	}
	if req.NewCapacityKb*1024 < has.size || len(c.disks.chain(req.Name)) > 1 {
		return nil, &types.InvalidArgument{InvalidProperty: "newCapacityKb"}
	}
	c.tracking.reset(req.Name)
	return nil, c.disks.extend(req.Name, req.NewCapacityKb*1024)
}

func queryVirtualDiskUUID(c *center, req *types.QueryVirtualDiskUuid) (types.AnyType, types.BaseMethodFault) {
	has, fault := readDescriptor(req.Name)
	if fault != nil {
		return nil, fault
	}
	return fmt.Sprint(has.uuid), nil
}

// makeFolder makes a folder of a datastore, if it is not there.
func makeFolder(where string) {
	_ = os.MkdirAll(path.Clean(local(where)), 0700)
}
