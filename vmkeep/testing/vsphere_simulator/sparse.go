package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"syscall"
)

// For lseek(2), see there.
const (
	seekData = 3
	seekHole = 4
)

// extents calls f with each range of a file that holds data, in order.
func extents(file *os.File, f func(start, end int64) error) error {
	for end := int64(0); ; {
		start, err := syscall.Seek(int(file.Fd()), end, seekData)
		if err == syscall.ENXIO {
			return nil // there is no more
		}
		if err != nil {
			return err
		}
		if end, err = syscall.Seek(int(file.Fd()), start, seekHole); err != nil {
			return err
		}
		if err := f(start, end); err != nil {
			return err
		}
	}
}

// copySparse copies a file; holes stay holes.
func copySparse(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	if err := os.MkdirAll(path.Dir(to), 0700); err != nil {
		return err
	}
	target, err := os.Create(to)
	if err != nil {
		return err
	}
	defer target.Close()
	size, err := source.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if err := target.Truncate(size); err != nil {
		return err
	}
	return extents(source, func(start, end int64) error {
		_, err := io.Copy(&writerAt{target, start}, io.NewSectionReader(source, start, end-start))
		return err
	})
}

type writerAt struct {
	file   *os.File
	offset int64
}

func (w *writerAt) Write(data []byte) (int, error) {
	n, err := w.file.WriteAt(data, w.offset)
	w.offset += int64(n)
	return n, err
}

// toStream converts a raw image to what leases carry.
func toStream(raw, vmdk string) error {
	return qemuImg("convert", "-f", "raw", "-O", "vmdk",
		"-o", "subformat=streamOptimized,adapter_type=lsilogic", raw, vmdk)
}

// fromStream writes what a lease carried into a raw image that is there and has the size.
func fromStream(vmdk, raw string) error {
	return qemuImg("convert", "-n", "-f", "vmdk", "-O", "raw", vmdk, raw)
}

func qemuImg(arguments ...string) error {
	if out, err := exec.Command("qemu-img", arguments...).CombinedOutput(); err != nil {
		return fmt.Errorf("qemu-img: %v: %s", err, out)
	}
	return nil
}
