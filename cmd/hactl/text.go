// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// modelText shows a model version as name:version.
func modelText(m *pb.ModelRef) string {
	switch {
	case m.GetName() == "":
		return m.GetDigest()
	case m.GetVersion() == "":
		return m.GetName()
	}
	return m.GetName() + ":" + m.GetVersion()
}

func tagsText(tags *pb.InstanceTags) string {
	var parts []string
	if tags.GetNoFailover() {
		parts = append(parts, "no-failover")
	}
	if tags.GetPriority() != 0 {
		parts = append(parts, fmt.Sprintf("priority=%d", tags.GetPriority()))
	}
	if tags.GetZone() != "" {
		parts = append(parts, "zone="+tags.GetZone())
	}
	return strings.Join(parts, ",")
}

// pairsText shows a map as k=v,k=v in order.
func pairsText(m map[string]string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, k+"="+m[k])
	}
	return strings.Join(parts, ",")
}
