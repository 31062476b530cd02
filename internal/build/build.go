// SPDX-License-Identifier: Apache-2.0

// Package build says which version of the program this is.
package build

import "runtime/debug"

// version is set by the linker for a release.
var version string

// Version is the release, or the commit that the program was built from.
func Version() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "devel-" + s.Value[:12]
		}
	}
	return "devel"
}
