// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"encoding/binary"
	"net/netip"
)

// TCP flags and the sizes of headers without options.
const (
	flagRST    = 0x04
	ipHeader   = 20
	tcpHeader  = 20
	protoTCP   = 6
	packetSize = 1500 // of a TUN device, see openTun
)

// destination is the address an IPv4 packet goes to; ok is false for anything
// else.
func destination(packet []byte) (to netip.Addr, ok bool) {
	if len(packet) < ipHeader || packet[0]>>4 != 4 {
		return netip.Addr{}, false
	}
	return netip.AddrFrom4([4]byte(packet[16:20])), true
}

// segment is what a reset has to know of a TCP segment.
type segment struct {
	src, dst         [4]byte
	srcPort, dstPort uint16
	seq, ack         uint32
}

// dataSegment reads a TCP segment that carries data; ok is false for all other
// packets.
func dataSegment(packet []byte) (s segment, ok bool) {
	if len(packet) < ipHeader || packet[0]>>4 != 4 || packet[9] != protoTCP {
		return s, false
	}
	head, total := int(packet[0]&0x0f)*4, int(binary.BigEndian.Uint16(packet[2:]))
	if fragment := binary.BigEndian.Uint16(packet[6:]) & 0x1fff; fragment != 0 {
		return s, false
	}
	if head < ipHeader || total > len(packet) || total < head+tcpHeader {
		return s, false
	}
	tcp := packet[head:total]
	if data := int(tcp[12]>>4) * 4; data < tcpHeader || data >= len(tcp) || tcp[13]&flagRST != 0 {
		return s, false
	}
	return segment{
		src: [4]byte(packet[12:16]), dst: [4]byte(packet[16:20]),
		srcPort: binary.BigEndian.Uint16(tcp), dstPort: binary.BigEndian.Uint16(tcp[2:]),
		seq: binary.BigEndian.Uint32(tcp[4:]), ack: binary.BigEndian.Uint32(tcp[8:]),
	}, true
}

// resets are the packets that end the connection of a segment at its sender and
// at its receiver. Each carries the very number that its reader expects next;
// where it has moved on meanwhile, it asks back, and the other end, which has
// forgotten the connection, resets it.
func (s segment) resets() (toSender, toReceiver []byte) {
	toSender = reset(s.dst, s.src, s.dstPort, s.srcPort, s.ack)
	toReceiver = reset(s.src, s.dst, s.srcPort, s.dstPort, s.seq)
	return toSender, toReceiver
}

// reset builds a TCP segment with the RST flag alone.
func reset(src, dst [4]byte, srcPort, dstPort uint16, seq uint32) []byte {
	p := make([]byte, ipHeader+tcpHeader)
	p[0] = 4<<4 | ipHeader/4
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	p[8], p[9] = 64, protoTCP
	copy(p[12:], src[:])
	copy(p[16:], dst[:])
	binary.BigEndian.PutUint16(p[10:], checksum(0, p[:ipHeader]))

	tcp := p[ipHeader:]
	binary.BigEndian.PutUint16(tcp, srcPort)
	binary.BigEndian.PutUint16(tcp[2:], dstPort)
	binary.BigEndian.PutUint32(tcp[4:], seq)
	tcp[12], tcp[13] = tcpHeader/4<<4, flagRST
	// The pseudo header of RFC 9293: both addresses, the protocol, the length.
	pseudo := uint32(protoTCP + tcpHeader)
	for _, a := range [][4]byte{src, dst} {
		pseudo += uint32(binary.BigEndian.Uint16(a[:])) + uint32(binary.BigEndian.Uint16(a[2:]))
	}
	binary.BigEndian.PutUint16(tcp[16:], checksum(pseudo, tcp))
	return p
}

// checksum is the internet checksum (RFC 1071) of data of even length, begun
// with sum.
func checksum(sum uint32, data []byte) uint16 {
	for i := 0; i+1 < len(data); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(data[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
