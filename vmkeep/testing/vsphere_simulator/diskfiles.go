package main

import (
	"fmt"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// diskFiles are virtual disks as files of datastores. A disk is a chain of links, each a descriptor with an extent:
//
//	disk-000002.vmdk ──> disk-000001.vmdk ──> disk.vmdk       descriptors
//	       │                    │                 │
//	   (hidden raw)         (hidden raw)     disk-flat.vmdk   all the link shows, as bytes
//
// As with ESXi, only the lowest link's extent is a raw image that can be read. That of a delta disk is a format of
// its own; what lies in the datastore for it is a sign, and the bytes are hidden in a folder beside.
type diskFiles struct {
	folder  string
	parents map[string]string // of delta disks, by descriptor
}

// chain returns the links of a disk, from the given one down.
func (d *diskFiles) chain(file string) []string {
	result := []string{file}
	for parent, ok := d.parents[file]; ok; parent, ok = d.parents[parent] {
		result = append(result, parent)
	}
	return result
}

// base returns the lowest link.
func (d *diskFiles) base(file string) string {
	links := d.chain(file)
	return links[len(links)-1]
}

// raw returns where all bytes that a link shows lie.
func (d *diskFiles) raw(file string) string {
	if _, delta := d.parents[file]; delta {
		var where object.DatastorePath
		where.FromString(file)
		return path.Join(d.folder, "deltas", where.Datastore, where.Path+".raw")
	}
	return suffixed(local(file), "-flat")
}

// backing returns the chain below a link, as a device shows it; nil for the lowest link.
func (d *diskFiles) parentBacking(of *types.VirtualDiskFlatVer2BackingInfo) *types.VirtualDiskFlatVer2BackingInfo {
	parent, ok := d.parents[of.FileName]
	if !ok {
		return nil
	}
	result := *of
	result.FileName, result.ChangeId = parent, ""
	result.Parent = d.parentBacking(&result)
	return &result
}

// create makes an empty disk.
func (d *diskFiles) create(file string, size int64, thin bool) types.BaseMethodFault {
	return d.write(file, descriptor{size: size, uuid: newDiskUUID(), thin: thin})
}

func (d *diskFiles) write(file string, has descriptor) types.BaseMethodFault {
	where := local(file)
	if _, err := os.Stat(where); err == nil {
		return &types.FileAlreadyExists{FileFault: types.FileFault{File: file}}
	}
	if _, err := os.Stat(path.Dir(where)); err != nil {
		return &types.FileNotFound{FileFault: types.FileFault{File: file}}
	}
	flat := suffixed(where, "-flat")
	if err := os.WriteFile(flat, nil, 0600); err != nil {
		return &types.CannotCreateFile{FileFault: types.FileFault{File: file}}
	}
	if err := os.Truncate(flat, has.size); err != nil {
		return &types.CannotCreateFile{FileFault: types.FileFault{File: file}}
	}
	return has.save(where, fmt.Sprintf("VMFS %q", path.Base(flat)), "")
}

// delta makes a new link above one; it shows the same bytes, and can be written.
func (d *diskFiles) delta(parent string) (string, types.BaseMethodFault) {
	base := strings.TrimSuffix(d.base(parent), ".vmdk")
	file := ""
	for n := 1; ; n++ {
		file = fmt.Sprintf("%s-%06d.vmdk", base, n)
		if _, err := os.Stat(local(file)); err != nil {
			break
		}
	}
	has, fault := readDescriptor(parent)
	if fault != nil {
		return "", fault
	}
	sign := suffixed(local(file), "-delta")
	if err := os.WriteFile(sign, []byte("COWD"), 0600); err != nil {
		return "", &types.CannotCreateFile{FileFault: types.FileFault{File: file}}
	}
	if fault := has.save(local(file), fmt.Sprintf("VMFSSPARSE %q", path.Base(sign)), path.Base(local(parent))); fault != nil {
		return "", fault
	}
	from := d.raw(parent)
	d.parents[file] = parent
	if err := copySparse(from, d.raw(file)); err != nil {
		return "", &types.CannotCreateFile{FileFault: types.FileFault{File: file}}
	}
	return file, nil
}

// fold lets a link show what the one above it does, which is gone then.
func (d *diskFiles) fold(above string) error {
	below := d.parents[above]
	if err := os.Rename(d.raw(above), d.raw(below)); err != nil {
		return err
	}
	for child, parent := range d.parents {
		if parent == above {
			d.parents[child] = below
		}
	}
	d.forget(above)
	return nil
}

// remove deletes a link.
func (d *diskFiles) remove(file string) {
	_ = os.Remove(d.raw(file))
	if _, delta := d.parents[file]; !delta {
		_ = os.Remove(suffixed(local(file), "-ctk"))
	}
	d.forget(file)
}

func (d *diskFiles) forget(file string) {
	_ = os.Remove(local(file))
	_ = os.Remove(suffixed(local(file), "-delta"))
	delete(d.parents, file)
}

// extend lets the lowest link grow.
func (d *diskFiles) extend(file string, size int64) types.BaseMethodFault {
	has, fault := readDescriptor(file)
	if fault != nil {
		return fault
	}
	flat := d.raw(file)
	if err := os.Truncate(flat, size); err != nil {
		return &types.CannotAccessFile{FileFault: types.FileFault{File: file}}
	}
	has.size = size
	return has.save(local(file), fmt.Sprintf("VMFS %q", path.Base(flat)), "")
}

// descriptor is what the text file says that a disk is called by.
type descriptor struct {
	size int64  // bytes
	uuid string // as the API shows it
	thin bool
}

var (
	sizeLine = regexp.MustCompile(`(?m)^RW (\d+) `)
	uuidLine = regexp.MustCompile(`(?m)^ddb\.uuid = "([^"]+)"`)
)

func readDescriptor(file string) (descriptor, types.BaseMethodFault) {
	data, err := os.ReadFile(local(file))
	if err != nil {
		return descriptor{}, &types.FileNotFound{FileFault: types.FileFault{File: file}}
	}
	size, id := sizeLine.FindSubmatch(data), uuidLine.FindSubmatch(data)
	if size == nil || id == nil {
		return descriptor{}, &types.InvalidDiskFormat{}
	}
	sectors, _ := strconv.ParseInt(string(size[1]), 10, 64)
	parsed, err := uuid.Parse(strings.NewReplacer(" ", "", "-", "").Replace(string(id[1])))
	if err != nil {
		return descriptor{}, &types.InvalidDiskFormat{}
	}
	thin := strings.Contains(string(data), `ddb.thinProvisioned = "1"`)
	return descriptor{size: sectors * 512, uuid: shownUUID(parsed), thin: thin}, nil
}

func (d descriptor) save(where, extent, parent string) types.BaseMethodFault {
	kind, above := "vmfs", ""
	if parent != "" {
		kind, above = "vmfsSparse", fmt.Sprintf("parentFileNameHint=%q\n", parent)
	}
	thin := ""
	if d.thin {
		thin = "ddb.thinProvisioned = \"1\"\n"
	}
	id := uuid.MustParse(d.uuid)
	content := fmt.Sprintf(`# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=fffffffe
parentCID=ffffffff
createType=%q
%s
# Extent description
RW %d %s

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
%sddb.uuid = "% x-% x"
ddb.virtualHWVersion = "13"
`, kind, above, d.size/512, extent, thin, id[:8], id[8:])
	if err := os.WriteFile(where, []byte(content), 0600); err != nil {
		return &types.CannotCreateFile{FileFault: types.FileFault{File: where}}
	}
	return nil
}

// newDiskUUID returns one of VMware's kind.
func newDiskUUID() string {
	id := uuid.New()
	copy(id[:], []byte{0x60, 0x00, 0xC2, 0x9A})
	return shownUUID(id)
}

func shownUUID(id uuid.UUID) string {
	shown := id.String()
	return strings.ToUpper(shown[:6]) + shown[6:]
}

// suffixed returns the path of a file that belongs to a descriptor.
func suffixed(file, suffix string) string {
	return strings.TrimSuffix(file, ".vmdk") + suffix + ".vmdk"
}

// local returns the local path of a path in a datastore, "" for an unknown datastore.
func local(file string) string {
	var where object.DatastorePath
	where.FromString(file)
	store := datastore(where.Datastore)
	if store == nil {
		return ""
	}
	return path.Join(store.Info.GetDatastoreInfo().Url, path.Clean("/"+where.Path))
}

// datastore returns the datastore of a name, nil if there is none.
func datastore(name string) *simulator.Datastore {
	for _, entity := range simulator.Map.All("Datastore") {
		if store := entity.(*simulator.Datastore); store.Name == name {
			return store
		}
	}
	return nil
}
