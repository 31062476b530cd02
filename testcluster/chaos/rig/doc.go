// SPDX-License-Identifier: Apache-2.0

// Package rig makes the hosts on which a chaos run breaks a cluster. A host is
// one hanode process and one model server process per group, in a network
// namespace of its own, with the data folder on a small ext4 file system of its
// own. Its processes, its links to the others, its disk and its clock can be
// broken and put right again, each alone.
//
// As root, everything is made inside namespaces of the program itself (see
// Enter), so that nothing is left behind however the program ends. Without root,
// hosts are loopback addresses and folders, links and stalled disks are acted out
// inside hanode, and what cannot be acted out returns ErrUnsupported.
//
// A healthy link is the kernel's own bridge. Only a faulty direction passes
// through this program: a route in the sender's namespace leads its packets into
// a TUN device, from which they are read, dropped, delayed, or answered with a
// reset, and written into the receiver's TUN device.
//
// Linux only.
package rig
