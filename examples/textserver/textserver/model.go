// SPDX-License-Identifier: Apache-2.0

package textserver

import (
	"cmp"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"
)

//go:embed corpus/*.txt
var corpus embed.FS

const (
	// Order is the length of the longest n-gram.
	Order = 5
	// algorithm changes when the same texts give other answers.
	algorithm = 1
	// ModelName is the name that the model is asked for by.
	ModelName = "textserver"
	// maxTopics is how many texts the corpus may have: one bit each.
	maxTopics = 16
	// paragraph is the token between two paragraphs, and what an answer begins
	// after.
	paragraph = "\n\n"
)

// Model is a trained n-gram model. It is not changed after Train, and may be
// used by many goroutines.
type Model struct {
	vocabulary []string
	ids        map[string]uint32
	follow     map[gram][]next
	// topics are the words of each text, in lower case, with their counts.
	topics []map[string]int
	// words counts the words of all texts.
	words map[string]int
	// sum is the digest of the texts and the order.
	sum [sha256.Size]byte
}

// gram is a context: the last n tokens, newest last, in t[:n].
type gram struct {
	n uint8
	t [Order - 1]uint32
}

// next is one token that was seen after a context.
type next struct {
	token uint32
	count uint32
	// topics has a bit for each text in which it was seen there.
	topics uint16
}

// Train makes the model from the texts in the program.
func Train() (*Model, error) {
	names, err := fs.Glob(corpus, "corpus/*.txt")
	if err != nil {
		return nil, fmt.Errorf("list corpus: %w", err)
	}
	if len(names) == 0 || len(names) > maxTopics {
		return nil, fmt.Errorf("the corpus has %d texts, it must have 1 to %d", len(names), maxTopics)
	}
	m := &Model{ids: map[string]uint32{}, follow: map[gram][]next{}, words: map[string]int{}}
	sum := sha256.New()
	for topic, name := range names {
		text, err := corpus.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		fmt.Fprintf(sum, "%s %d\n%s", name, len(text), text)
		if err := m.learn(topic, string(text)); err != nil {
			return nil, fmt.Errorf("learn %s: %w", name, err)
		}
	}
	fmt.Fprintf(sum, "order %d algorithm %d", Order, algorithm)
	sum.Sum(m.sum[:0])
	for _, nexts := range m.follow {
		slices.SortFunc(nexts, func(a, b next) int { return cmp.Compare(a.token, b.token) })
	}
	return m, nil
}

// pieces splits text into tokens whose concatenation is the text: a word or a
// mark, with the space before it.
var pieces = regexp.MustCompile(`\n\n| ?[\pL\pN]+(?:['’-][\pL\pN]+)*| ?[^\s\pL\pN]|\s`)

// spaces are the line breaks and indents inside a paragraph.
var spaces = regexp.MustCompile(`\s+`)

// tokens splits a text, one paragraph after the other.
func tokens(text string) []string {
	out := []string{paragraph}
	for _, p := range strings.Split(text, paragraph) {
		if p = strings.TrimSpace(spaces.ReplaceAllString(p, " ")); p != "" {
			out = append(append(out, pieces.FindAllString(p, -1)...), paragraph)
		}
	}
	return out
}

func (m *Model) learn(topic int, text string) error {
	toks := tokens(text)
	if len(toks) < Order {
		return errors.New("the text is too short")
	}
	seen := make([]uint32, len(toks))
	words := map[string]int{}
	for i, tok := range toks {
		seen[i] = m.intern(tok)
		word := strings.ToLower(strings.TrimSpace(tok))
		words[word]++
		m.words[word]++
	}
	m.topics = append(m.topics, words)
	for i := 1; i < len(seen); i++ {
		for n := 1; n < Order && n <= i; n++ {
			m.count(newGram(seen[i-n:i]), seen[i], topic)
		}
	}
	return nil
}

func (m *Model) intern(tok string) uint32 {
	id, ok := m.ids[tok]
	if !ok {
		id = uint32(len(m.vocabulary))
		m.vocabulary, m.ids[tok] = append(m.vocabulary, tok), id
	}
	return id
}

func newGram(last []uint32) gram {
	g := gram{n: uint8(len(last))}
	copy(g.t[:], last)
	return g
}

func (m *Model) count(g gram, token uint32, topic int) {
	nexts := m.follow[g]
	for i := range nexts {
		if nexts[i].token == token {
			nexts[i].count++
			nexts[i].topics |= 1 << topic
			return
		}
	}
	m.follow[g] = append(nexts, next{token: token, count: 1, topics: 1 << topic})
}

// Digest is the model's content digest with a seed: "sha256:<hex>" over texts,
// order, way of drawing and seed.
func (m *Model) Digest(seed uint64) string {
	sum := sha256.Sum256(fmt.Appendf(m.sum[:], " seed %d", seed))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Vocabulary is the number of different tokens.
func (m *Model) Vocabulary() int { return len(m.vocabulary) }

// topicOf is the bit of the text that fits a prompt best, 0 if none does.
func (m *Model) topicOf(prompt string) uint16 {
	const share = 1000 // scores are integers, so that all machines agree
	best, bit := 0, uint16(0)
	for topic, words := range m.topics {
		score := 0
		for _, tok := range pieces.FindAllString(prompt, -1) {
			word := strings.ToLower(strings.TrimSpace(tok))
			if n := words[word]; n > 0 && len(word) > 3 {
				// A word that all texts have says nothing about the topic.
				score += max(0, share*n/m.words[word]-share/4)
			}
		}
		if score > best {
			best, bit = score, 1<<topic
		}
	}
	return bit
}
