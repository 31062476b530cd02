// SPDX-License-Identifier: Apache-2.0

package textserver

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// Speech is what a model says to a prompt under a seed.
type Speech struct {
	model *Model
	topic uint16
	key   uint64
}

// Speak prepares an answer.
func (m *Model) Speak(seed uint64, prompt string) *Speech {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s", seed, prompt))
	return &Speech{model: m, topic: m.topicOf(prompt), key: binary.LittleEndian.Uint64(sum[:8])}
}

// trust is how much a sighting in a longer context counts for staying with it.
const trust = 2

// onTopic is how much more likely a token is that was seen in the topic's text.
const onTopic = 24

// Next is the token after those before: a pure function of them, the prompt and
// the seed. It draws as an interpolated back-off model does: at each order it
// stays with the chance that this context is known well (2N of 2N+T, for
// N sightings of T different tokens) and else asks the next shorter context.
func (s *Speech) Next(before []string) string {
	m := s.model
	dice := source(s.key ^ mix(uint64(len(before))+1))
	context := []uint32{m.ids[paragraph]}
	for _, tok := range before[max(0, len(before)-Order+1):] {
		id, known := m.ids[tok]
		if !known { // from another version of the model
			id = m.ids[paragraph]
		}
		context = append(context, id)
	}
	for n := min(len(context), Order-1); n > 0; n-- {
		nexts := m.follow[newGram(context[len(context)-n:])]
		if len(nexts) == 0 {
			continue
		}
		seen := uint64(0)
		for _, x := range nexts {
			seen += uint64(x.count)
		}
		stay := dice.below(trust*seen+uint64(len(nexts))) < trust*seen
		if stay || n == 1 {
			return m.vocabulary[s.draw(nexts, &dice)]
		}
	}
	return paragraph // the last token of a text has no follower of its own
}

// draw chooses by the square of the counts, a low temperature that needs no
// floating point: every machine draws the same.
func (s *Speech) draw(nexts []next, dice *source) uint32 {
	weight := func(x next) uint64 {
		w := uint64(x.count) * uint64(x.count)
		if x.topics&s.topic != 0 {
			w *= onTopic
		}
		return w
	}
	total := uint64(0)
	for _, x := range nexts {
		total += weight(x)
	}
	at := dice.below(total)
	for _, x := range nexts {
		w := weight(x)
		if at < w {
			return x.token
		}
		at -= w
	}
	return nexts[len(nexts)-1].token // not reached: at < total
}

// source is a splitmix64 generator, ours so that no version of Go changes what
// is said.
type source uint64

func (s *source) below(n uint64) uint64 {
	*s += 0x9e3779b97f4a7c15
	return mix(uint64(*s)) % n
}

func mix(z uint64) uint64 {
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb
	return z ^ (z >> 31)
}
