// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/hastate/hastate/internal/logstore"
	"github.com/hastate/hastate/testcluster/chaos/rig"
)

// How package seglog lays out its files, as far as damage is aimed: sectors that end
// with their segment's number, their append's, and a checksum.
const (
	segmentSector  = 512
	segmentTrailer = 12
)

// harm damages a file of a host that is down, and says how.
type harm func(f *os.File, d *draw) (string, error)

// harmLog chooses a file of a host's log, whatever its kind is.
func harmLog(bolt, segments harm) func(h *rig.Host, d *draw) (string, harm, error) {
	return func(h *rig.Host, _ *draw) (string, harm, error) {
		kind, err := logstore.Find(h.DataDir())
		if err != nil || kind != logstore.Segments {
			return logstore.PathIn(h.DataDir(), logstore.Bolt), bolt, err
		}
		path, err := newestSegment(logstore.PathIn(h.DataDir(), kind))
		return path, segments, err
	}
}

// newestSegment is the file that was written to last.
func newestSegment(dir string) (string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	if err != nil {
		return "", err
	}
	slices.Sort(files)
	for _, path := range slices.Backward(files) {
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		used, err := usedSectors(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return "", err
		}
		if len(used) > 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s has no segment that is in use", dir)
}

// usedSector is a sector that its segment has written.
type usedSector struct {
	at     int64
	number uint32 // of its append
}

// usedSectors are those of a segment's file.
func usedSectors(f *os.File) ([]usedSector, error) {
	name := strings.TrimSuffix(filepath.Base(f.Name()), ".seg")
	segment, err := strconv.ParseUint(name, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("%s is no segment: %w", f.Name(), err)
	}
	b, err := os.ReadFile(f.Name())
	if err != nil {
		return nil, err
	}
	var used []usedSector
	for at := 0; at+segmentSector <= len(b); at += segmentSector {
		trailer := b[at+segmentSector-segmentTrailer:]
		if binary.BigEndian.Uint32(trailer) == uint32(segment) {
			used = append(used, usedSector{int64(at), binary.BigEndian.Uint32(trailer[4:])})
		}
	}
	return used, nil
}

// tearSegment damages a segment as no crash does: its end is gone, sectors of an append
// that is not the newest are zero, or the newest ones are overwritten. (Those of the
// newest append may be missing after a power cut, and nobody could notice.)
func tearSegment(f *os.File, d *draw) (string, error) {
	how, n, share := d.IntN(3), 1+d.IntN(4), d.Float64()
	used, err := usedSectors(f)
	if err != nil {
		return "", err
	}
	if len(used) < 2 {
		return "", fmt.Errorf("%s holds nothing that could be damaged", f.Name())
	}
	newest := used[len(used)-1]
	older := slices.IndexFunc(used, func(s usedSector) bool { return s.number == newest.number })
	if older == 0 && how == 1 {
		how = 2
	}
	switch how {
	case 0:
		at := int64(share * float64(newest.at))
		return fmt.Sprintf("it is cut off at byte %d, %d are used", at, newest.at+segmentSector), f.Truncate(at)
	case 1:
		first := int(share * float64(older))
		n = min(n, older-first)
		return fmt.Sprintf("%d sectors at %d are zero", n, used[first].at), overwrite(f, used[first].at, make([]byte, n*segmentSector))
	}
	n = min(n, len(used))
	at := used[len(used)-n].at
	junk := make([]byte, newest.at+segmentSector-at)
	for i := range junk {
		junk[i] = byte(d.Uint32())
	}
	return fmt.Sprintf("%d bytes at %d are overwritten", len(junk), at), overwrite(f, at, junk)
}

// flipSegment flips 1 to 16 different bits of what is used of a segment.
func flipSegment(f *os.File, d *draw) (string, error) {
	n := 1 + d.IntN(16)
	used, err := usedSectors(f)
	if err != nil {
		return "", err
	}
	var spans []span
	for _, s := range used {
		spans = append(spans, span{s.at, s.at + segmentSector})
	}
	return fmt.Sprintf("%d bits of what is used are flipped", n), flipIn(f, d, n, spans)
}
