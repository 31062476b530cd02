// SPDX-License-Identifier: Apache-2.0

package textserver

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/hastate/hastate"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var trained = sync.OnceValues(Train)

func model(t *testing.T) *Model {
	t.Helper()
	m, err := trained()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// say is an answer of n tokens.
func say(m *Model, seed uint64, prompt string, n int) []string {
	speech, out := m.Speak(seed, prompt), []string(nil)
	for len(out) < n {
		out = append(out, speech.Next(out))
	}
	return out
}

func TestModel_Deterministic(t *testing.T) {
	const n, prompt = 200, "user: What is a cluster?\n"
	m := model(t)
	want := say(m, 7, prompt, n)
	again, err := Train()
	if err != nil {
		t.Fatal(err)
	}
	for split := range n {
		// Another server, with a model trained anew, goes on from here.
		if got := again.Speak(7, prompt).Next(want[:split]); got != want[split] {
			t.Fatalf("token %d is %q, want %q", split, got, want[split])
		}
	}
	if slices.Equal(want, say(m, 8, prompt, n)) || slices.Equal(want, say(m, 7, "user: Hello\n", n)) {
		t.Fatal("another seed or prompt gives the same answer")
	}
	text := strings.Join(want, "")
	if len(text) < 2*n || strings.Contains(text, "  ") {
		t.Fatalf("this is no text: %q", text)
	}
}

// TestModel_Golden fails when a change makes the model say something else: then
// answers that were begun by an older server are not continued as it would have.
// Raise algorithm then, so that the digest changes with it.
func TestModel_Golden(t *testing.T) {
	m := model(t)
	sum := sha256.Sum256([]byte(strings.Join(say(m, 1, "user: Tell me a story.\n", 500), "")))
	got := hex.EncodeToString(sum[:8]) + " " + m.Digest(1)
	const want = "befbaeea7bca60eb sha256:4975900a7361fc9ed2850e64d3ecf7c7ac1a7150d2d992f569975bec9af85ae8"
	if got != want {
		t.Fatalf("have %s, want %s", got, want)
	}
	if m.Digest(1) == m.Digest(2) || len(m.Digest(1)) != len("sha256:")+64 {
		t.Fatal("digest", m.Digest(1), m.Digest(2))
	}
}

func TestModel_Topic(t *testing.T) {
	m := model(t)
	for prompt, word := range map[string]string{
		"how does an election of a leader by majority vote work in a term": "consensus",
		"bake a bread in the oven with flour":                              "cooking",
	} {
		names, err := corpus.ReadDir("corpus")
		if err != nil {
			t.Fatal(err)
		}
		at := slices.IndexFunc([]uint16{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024}, func(b uint16) bool { return b == m.topicOf(prompt) })
		if at < 0 || names[at].Name() != word+".txt" {
			t.Errorf("topic of %q is %d", prompt, at)
		}
	}
	if m.topicOf("") != 0 {
		t.Error("an empty prompt has a topic")
	}
}

func TestSpeech_UnknownTokens(t *testing.T) {
	if model(t).Speak(1, "x").Next([]string{"xyzzy", "plugh", "", "\x00", "xyzzy"}) == "" {
		t.Fatal("no token")
	}
}

func TestTurn(t *testing.T) {
	first := turn{Prompt: "a", Seed: 1, MaxTokens: 3, Model: "m", Created: 9}
	second := turn{Prompt: "b", Seed: 1, MaxTokens: 3}
	data, err := first.record()
	if err != nil {
		t.Fatal(err)
	}
	data = appendRecord(data, recordToken, []byte(" one"))
	data = appendRecord(data, recordToken, []byte("\n\n"))
	got, err := decodeStream(Stream{Base: 100, Data: data, Found: true})
	if err != nil || !got.begun || got.turn != first || !slices.Equal(got.tokens, []string{" one", "\n\n"}) || got.start != 100 || got.end != 100+uint64(len(data)) {
		t.Fatalf("%+v %v", got, err)
	}
	more, err := second.record()
	if err != nil {
		t.Fatal(err)
	}
	both := append(append([]byte(nil), data...), more...)
	got, err = decodeStream(Stream{Data: both})
	if err != nil || got.turn != second || got.tokens != nil || got.start != uint64(len(data)) {
		t.Fatalf("%+v %v", got, err)
	}
	if got, err := decodeStream(Stream{}); err != nil || got.begun {
		t.Fatalf("%+v %v", got, err)
	}
	for name, bad := range map[string][]byte{
		"cut off":      data[:len(data)-1],
		"no turn":      appendRecord(nil, recordToken, []byte("x")),
		"unknown kind": appendRecord(nil, 9, nil),
		"no JSON":      appendRecord(nil, recordTurn, []byte("{")),
		"huge":         {recordTurn, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1},
	} {
		if _, err := decodeStream(Stream{Data: bad}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := (turn{Prompt: strings.Repeat("x", maxTurnHeader)}).record(); !errors.Is(err, hastate.ErrLimit) {
		t.Errorf("huge prompt: %v", err)
	}
}

func FuzzDecodeStream(f *testing.F) {
	data, err := turn{Prompt: "a"}.record()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(appendRecord(data, recordToken, []byte("x")))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeStream(Stream{Base: 100, Data: b})
		if err != nil {
			return
		}
		if got.begun == (len(b) == 0) || got.end != 100+uint64(len(b)) || got.start > got.end {
			t.Fatalf("%q gives %+v", b, got)
		}
		// The turn that is under way is read back from what it is written as.
		again, err := got.turn.record()
		if err != nil || !got.begun {
			return
		}
		for _, token := range got.tokens {
			again = appendRecord(again, recordToken, []byte(token))
		}
		if back, err := decodeStream(Stream{Data: again}); err != nil || back.turn != got.turn || !slices.Equal(back.tokens, got.tokens) {
			t.Fatalf("%+v was read back as %+v, %v", got, back, err)
		}
	})
}
