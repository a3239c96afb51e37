package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// grain is what changes are tracked by, in bytes.
const grain = 64 << 10

type hash = [sha256.Size]byte

// tracking knows what disks held at each change id. We see no writes, so grains are compared: one that was written
// with what it held before counts as unchanged, which a client cannot tell from not being written.
//
// A change id says which tracking file it belongs to, and a number; the file lies beside the lowest link of the disk
// and is lost with it, with a reset, and when it is deleted. See: KB 1020128, "52 de c0 ... 63/81".
type tracking struct {
	marks map[string]map[int64]hash // by change id, hashes of the grains that hold data
	last  map[string]int            // by tracking file, the highest number
}

// mark gives the bytes of a raw image a change id.
func (t *tracking) mark(base, raw string) (string, error) {
	where := suffixed(local(base), "-ctk")
	name, err := os.ReadFile(where)
	if os.IsNotExist(err) {
		id := uuid.New()
		name = []byte(fmt.Sprintf("52 % x-% x", id[1:8], id[8:]))
		err = os.WriteFile(where, name, 0600)
	}
	if err != nil {
		return "", err
	}
	held, err := grains(raw)
	if err != nil {
		return "", err
	}
	t.last[string(name)]++
	id := fmt.Sprintf("%s/%d", name, t.last[string(name)])
	t.marks[id] = held
	return id, nil
}

// reset forgets all changes of a disk.
func (t *tracking) reset(base string) {
	_ = os.Remove(suffixed(local(base), "-ctk"))
}

// tracks tells whether a change id belongs to the disk's tracking file.
func (t *tracking) tracks(base, id string) bool {
	name, err := os.ReadFile(suffixed(local(base), "-ctk"))
	return err == nil && strings.HasPrefix(id, string(name)+"/") && t.marks[id] != nil
}

// grains returns the hashes of all grains of a raw image that hold data.
func grains(raw string) (map[int64]hash, error) {
	file, err := os.Open(raw)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	result := map[int64]hash{}
	buffer := make([]byte, grain)
	err = extents(file, func(start, end int64) error {
		for n := start / grain; n*grain < end; n++ {
			if _, done := result[n]; done {
				continue
			}
			size, err := file.ReadAt(buffer, n*grain)
			if err != nil && err != io.EOF {
				return err
			}
			result[n] = sha256.Sum256(buffer[:size])
		}
		return nil
	})
	return result, err
}

func queryChangedDiskAreas(c *center, req *types.QueryChangedDiskAreas) (types.AnyType, types.BaseMethodFault) {
	vm, fault := machine(req.This)
	if fault != nil {
		return nil, fault
	}
	devices, live := vm.Config.Hardware.Device, true
	if req.Snapshot != nil {
		snapshot, ok := simulator.Map.Get(*req.Snapshot).(*simulator.VirtualMachineSnapshot)
		if !ok {
			return nil, &types.ManagedObjectNotFound{Obj: *req.Snapshot}
		}
		devices, live = snapshot.Config.Hardware.Device, false
	} else if running(vm) {
		return nil, &types.InvalidPowerState{
			RequestedState: types.VirtualMachinePowerStatePoweredOff, ExistingState: vm.Runtime.PowerState}
	}
	var disk *types.VirtualDisk
	for _, found := range virtualDisks(devices) {
		if found.Key == req.DeviceKey {
			disk = found
		}
	}
	if disk == nil {
		return nil, &types.InvalidArgument{InvalidProperty: "deviceKey"}
	}
	size := disk.CapacityInBytes
	if req.StartOffset < 0 || req.StartOffset >= size {
		return nil, &types.InvalidArgument{InvalidProperty: "startOffset"}
	}
	backing := flat(disk)
	base := c.disks.base(backing.FileName)
	var now map[int64]hash
	switch {
	case live:
		var err error
		if now, err = grains(c.disks.raw(backing.FileName)); err != nil {
			return nil, &types.FileFault{File: backing.FileName}
		}
	case c.tracking.tracks(base, backing.ChangeId):
		now = c.tracking.marks[backing.ChangeId]
	default:
		return nil, &types.FileFault{File: backing.FileName}
	}
	var before map[int64]hash
	if req.ChangeId != "*" {
		if !c.tracking.tracks(base, req.ChangeId) {
			return nil, &types.FileFault{File: backing.FileName}
		}
		before = c.tracking.marks[req.ChangeId]
	}
	if c.settings.Coarse {
		// What storage other than VMFS may answer.
		return types.DiskChangeInfo{StartOffset: req.StartOffset, Length: size - req.StartOffset, ChangedArea: []types.
			DiskChangeExtent{{Start: req.StartOffset, Length: size - req.StartOffset}}}, nil
	}
	return c.page(before, now, req.StartOffset, size), nil
}

// page returns the areas that differ, from an offset on, as many as go into one answer.
func (c *center) page(before, now map[int64]hash, offset, size int64) types.DiskChangeInfo {
	info := types.DiskChangeInfo{StartOffset: offset, Length: size - offset}
	for n := offset / grain; n*grain < size; n++ {
		current, holds := now[n]
		earlier, held := before[n]
		if holds == held && current == earlier {
			continue
		}
		start, end := n*grain, (n+1)*grain
		if start < offset {
			start = offset
		}
		if end > size {
			end = size
		}
		count := len(info.ChangedArea)
		if count > 0 && info.ChangedArea[count-1].Start+info.ChangedArea[count-1].Length == start {
			info.ChangedArea[count-1].Length += end - start
			continue
		}
		if count == c.settings.PageSize {
			info.Length = start - offset
			break
		}
		info.ChangedArea = append(info.ChangedArea, types.DiskChangeExtent{Start: start, Length: end - start})
	}
	return info
}
