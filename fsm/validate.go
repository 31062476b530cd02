// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Limits that only the state machine has. Like those of package hastate they
// are part of what makes all nodes apply a log alike: changing one needs a new
// command.
const (
	maxInstances = 16_384
	maxMembers   = 1_024
	maxAliases   = hastate.MaxModelVersions
	// maxExpire bounds each list of one Expire.
	maxExpire = 1000
	// maxPolicyMillis bounds the times of a policy: seven days.
	maxPolicyMillis = 7 * 24 * 3600 * 1000
)

// Defaults of a group's policy.
const (
	defaultMaxFailovers     = 10
	defaultCalmMillis       = 600_000
	defaultDrainMillis      = 10_000
	defaultPromoteMillis    = 10_000
	digestPrefix            = "sha256:"
	digestHexDigits         = 64
	sessionValueLimitName   = "bytes of the session value"
	maxPointerNameBytes     = hastate.MaxNameBytes
	maxModelDigestTextBytes = hastate.MaxTextBytes
)

// firstBad returns the first refusal.
func firstBad(rs ...*pb.Result) *pb.Result {
	for _, r := range rs {
		if r != nil {
			return r
		}
	}
	return nil
}

// checkName refuses what cannot be part of a key.
func checkName(field, v string, maximum int) *pb.Result {
	if v == "" {
		return invalid("%s is missing", field)
	}
	return checkText(field, v, maximum)
}

// checkText refuses long text, control characters and bytes that are not UTF-8.
func checkText(field, v string, maximum int) *pb.Result {
	if len(v) > maximum {
		return overLimit("bytes of "+field, uint64(maximum), uint64(len(v)))
	}
	if !utf8.ValidString(v) {
		return invalid("%s is not UTF-8", field)
	}
	if strings.ContainsFunc(v, unicode.IsControl) {
		return invalid("%s has a control character", field)
	}
	return nil
}

// checkGroup refuses names that are hard to write in a URL, a metric or a shell.
func checkGroup(name string) *pb.Result {
	if bad := checkName("group", name, hastate.MaxNameBytes); bad != nil {
		return bad
	}
	for _, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return invalid("group %q: a name has only letters, digits, '-', '_' and '.'", name)
		}
	}
	return nil
}

func checkNode(name string) *pb.Result { return checkName("node id", name, hastate.MaxNameBytes) }

func checkReason(reason string) *pb.Result {
	return checkText("reason", reason, hastate.MaxTextBytes)
}

// checkMap refuses maps with many entries or large ones.
func checkMap(field string, m map[string]string, maxValue int) *pb.Result {
	if len(m) == 0 {
		return nil
	}
	if len(m) > hastate.MaxMapEntries {
		return overLimit("entries of "+field, hastate.MaxMapEntries, uint64(len(m)))
	}
	// The order of a map is random and the refusal is replicated: look for the
	// worst, not for the first.
	var longestKey, longestValue int
	var control, empty bool
	for k, v := range m {
		longestKey, longestValue = max(longestKey, len(k)), max(longestValue, len(v))
		empty = empty || k == ""
		control = control || !utf8.ValidString(k) || !utf8.ValidString(v) ||
			strings.ContainsFunc(k, unicode.IsControl) || strings.ContainsFunc(v, unicode.IsControl)
	}
	switch {
	case longestKey > maxPointerNameBytes:
		return overLimit("bytes of a name in "+field, maxPointerNameBytes, uint64(longestKey))
	case longestValue > maxValue:
		return overLimit("bytes of a value in "+field, uint64(maxValue), uint64(longestValue))
	case empty:
		return invalid("%s has an entry without a name", field)
	case control:
		return invalid("%s has a control character or is not UTF-8", field)
	}
	return nil
}

func checkLeaseTTL(ms uint32) *pb.Result {
	if ms < hastate.MinTTLMillis || ms > hastate.MaxTTLMillis {
		return invalid("lease of %d ms: must be %d to %d ms", ms, hastate.MinTTLMillis, hastate.MaxTTLMillis)
	}
	return nil
}

func checkKind(k pb.TransitionKind) *pb.Result {
	switch k {
	case pb.TransitionKind_TRANSITION_KIND_INITIAL, pb.TransitionKind_TRANSITION_KIND_FAILOVER,
		pb.TransitionKind_TRANSITION_KIND_SWITCHOVER, pb.TransitionKind_TRANSITION_KIND_REGRANT,
		pb.TransitionKind_TRANSITION_KIND_FORCED:
		return nil
	}
	return invalid("transition kind %d is not known", k)
}

// checkDigest wants "sha256:" and 64 lower-case hex digits.
func checkDigest(d string) *pb.Result {
	hex, found := strings.CutPrefix(d, digestPrefix)
	if !found || len(hex) != digestHexDigits || strings.Trim(hex, "0123456789abcdef") != "" {
		return invalid(`digest must be "sha256:" and 64 lower-case hex digits`)
	}
	return nil
}

// checkModelRef refuses a reference that does not name a version.
func checkModelRef(ref *pb.ModelRef) *pb.Result {
	return firstBad(
		checkName("model name", ref.GetName(), hastate.MaxNameBytes),
		checkName("model version", ref.GetVersion(), hastate.MaxNameBytes))
}

// checkModelText bounds a reference that a server reports; it may be partial.
func checkModelText(ref *pb.ModelRef) *pb.Result {
	return firstBad(
		checkText("model name", ref.GetName(), hastate.MaxNameBytes),
		checkText("model version", ref.GetVersion(), hastate.MaxNameBytes),
		checkText("model digest", ref.GetDigest(), maxModelDigestTextBytes))
}

func checkPolicy(p *pb.GroupPolicy) *pb.Result {
	if p == nil {
		return nil
	}
	if p.GetTtlMs() != 0 {
		if bad := checkLeaseTTL(p.GetTtlMs()); bad != nil {
			return bad
		}
	}
	for _, t := range []struct {
		name string
		ms   uint64
	}{
		{"calm_ms", p.GetCalmMs()},
		{"drain_ms", uint64(p.GetDrainMs())},
		{"promote_timeout_ms", uint64(p.GetPromoteTimeoutMs())},
	} {
		if t.ms > maxPolicyMillis {
			return overLimit(t.name, maxPolicyMillis, t.ms)
		}
	}
	if n := p.GetSessionValueBytes(); n > hastate.MaxSessionValueBytes {
		return overLimit("session_value_bytes", hastate.MaxSessionValueBytes, uint64(n))
	}
	return checkText("preferred_zone", p.GetPreferredZone(), hastate.MaxNameBytes)
}
