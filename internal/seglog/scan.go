// SPDX-License-Identifier: Apache-2.0

package seglog

import (
	"encoding/binary"
	"fmt"
)

// found is an append in a segment.
type found struct {
	number, position, sectors uint32
	// body are its records. It is valid during the call only.
	body []byte
}

// scanned is what a segment's file holds.
type scanned struct {
	end
	// torn is how many sectors from the end on may hold remains of an append that was
	// never acknowledged.
	torn uint32
	// last is the position of the newest whole append.
	last uint32
}

// scan reads the file of a segment: it calls visit for each append that is whole and
// tells of the rest. Anything that no crash can leave is an error.
func scan(file []byte, segment uint32, visit func(found) error) (scanned, error) {
	var (
		s     scanned
		total = uint32(len(file) / sectorBytes)
		body  []byte
	)
	for s.sectors < total {
		count, whole, err := measure(file, s.sectors, segment, s.appends)
		if err != nil {
			return s, err
		}
		if !whole {
			break
		}
		sectors := file[s.sectors*sectorBytes : (s.sectors+count)*sectorBytes]
		length := binary.BigEndian.Uint32(sectors)
		body = unframe(body[:0], sectors)[:lengthBytes+length]
		if err := visit(found{number: s.appends, position: s.sectors, sectors: count, body: body[lengthBytes:]}); err != nil {
			return s, fmt.Errorf("append %d at sector %d: %w", s.appends, s.sectors, err)
		}
		s.last = s.sectors
		s.sectors, s.appends = s.sectors+count, s.appends+1
	}
	for p := s.sectors; p < total; p++ {
		state, number := classify(sectorAt(file, p), p, segment)
		if state != written {
			continue
		}
		if number != s.appends {
			return s, fmt.Errorf("sector %d belongs to append %d, and append %d is not whole", p, number, s.appends)
		}
		s.torn = p - s.sectors + 1
	}
	return s, nil
}

func sectorAt(file []byte, position uint32) []byte {
	return file[position*sectorBytes : (position+1)*sectorBytes]
}

// measure looks for the append of a number at a position: how many sectors it takes,
// and whether all of them are there.
func measure(file []byte, position, segment, number uint32) (count uint32, whole bool, err error) {
	total := uint32(len(file) / sectorBytes)
	check := func(p uint32) (bool, error) {
		state, n := classify(sectorAt(file, p), p, segment)
		switch {
		case state == broken:
			return false, fmt.Errorf("the checksum of sector %d is wrong", p)
		case state == written && n != number:
			return false, fmt.Errorf("sector %d belongs to append %d instead of %d", p, n, number)
		}
		return state == written, nil
	}
	if there, err := check(position); err != nil || !there {
		return 0, false, err
	}
	length := binary.BigEndian.Uint32(sectorAt(file, position))
	if length == 0 || length > maxBody || sectorsOf(int(length)) > int(total-position) {
		return 0, false, fmt.Errorf("append %d at sector %d says that it has %d bytes", number, position, length)
	}
	count, whole = uint32(sectorsOf(int(length))), true
	for p := position + 1; p < position+count; p++ {
		there, err := check(p)
		if err != nil {
			return 0, false, err
		}
		whole = whole && there
	}
	return count, whole, nil
}
