// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// The output formats.
const (
	formatTable = "table"
	formatJSON  = "json"
	formatYAML  = "yaml"
)

var formats = []string{formatTable, formatJSON, formatYAML}

// table writes aligned columns for people.
type table struct{ w *tabwriter.Writer }

// row writes one line of cells. What comes from the cluster is free text: no cell
// can break the table or send codes to the terminal.
func (t table) row(cells ...any) {
	texts := make([]string, len(cells))
	for i, cell := range cells {
		texts[i] = oneLine(fmt.Sprint(cell))
		if texts[i] == "" {
			texts[i] = "-"
		}
	}
	_, _ = fmt.Fprintln(t.w, strings.Join(texts, "\t"))
}

// line writes text outside of the columns; it ends the table so far.
func (t table) line(format string, args ...any) {
	_ = t.w.Flush()
	_, _ = fmt.Fprintln(t.w, oneLine(fmt.Sprintf(format, args...)))
	_ = t.w.Flush()
}

func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

// print writes the reply of a command: the table for people, or the message with
// the field names of the API.
func (a *app) print(msg proto.Message, people func(table)) error {
	if a.format == formatTable {
		return a.printTable(people)
	}
	raw, err := marshal(msg)
	if err != nil {
		return err
	}
	return a.printJSON(raw, false)
}

// printLine is print for one message of a stream: one line of JSON, or one YAML
// document.
func (a *app) printLine(msg proto.Message, people func(io.Writer) error) error {
	if a.format == formatTable {
		return people(a.out)
	}
	raw, err := marshal(msg)
	if err != nil {
		return err
	}
	return a.printJSON(raw, true)
}

func (a *app) printTable(people func(table)) error {
	t := table{tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)}
	people(t)
	if err := t.w.Flush(); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// printJSON writes JSON as the chosen format.
func (a *app) printJSON(raw []byte, line bool) error {
	var buf bytes.Buffer
	var err error
	switch {
	case a.format == formatYAML:
		if line {
			buf.WriteString("---\n")
		}
		err = writeYAML(&buf, raw)
	case line:
		err = json.Compact(&buf, raw)
		buf.WriteByte('\n')
	default:
		err = json.Indent(&buf, raw, "", "  ")
		buf.WriteByte('\n')
	}
	if err == nil {
		_, err = a.out.Write(buf.Bytes())
	}
	if err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// marshal gives a message its JSON form. Fields without a value are there too, so
// that a script need not care; protojson's deliberate changes of white space are
// undone by the caller.
func marshal(msg proto.Message) ([]byte, error) {
	raw, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(msg)
	if err != nil {
		return nil, fmt.Errorf("format output: %w", err)
	}
	return raw, nil
}

// forYAML escapes what JSON has in its strings as it is, and what YAML refuses or
// takes for the end of a line.
func forYAML(raw []byte) []byte {
	var out []byte
	for _, r := range string(raw) {
		switch {
		case r == '\u2028', r == '\u2029', r == '\ufeff', r == '\ufffe', r == '\uffff', r >= 0x7f && r < 0xa0:
			out = fmt.Appendf(out, `\u%04x`, r)
		default:
			out = utf8.AppendRune(out, r)
		}
	}
	return out
}

// writeYAML writes JSON as YAML with the fields in their order.
func writeYAML(w io.Writer, raw []byte) error {
	var doc yaml.Node
	if err := yaml.Unmarshal(forYAML(raw), &doc); err != nil {
		return err
	}
	blockStyle(&doc)
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(&doc); err != nil {
		return err
	}
	return enc.Close()
}

// blockStyle takes JSON's style off, but from strings of which the encoder would make
// blocks, since it makes some that nobody can read.
func blockStyle(n *yaml.Node) {
	if len(n.Content) > 0 || n.Kind == yaml.ScalarNode && !strings.ContainsFunc(n.Value, unicode.IsControl) {
		n.Style = 0
	}
	for _, child := range n.Content {
		blockStyle(child)
	}
}

// stamp shows a wall clock of the history.
func stamp(unixMillis int64) string {
	if unixMillis == 0 {
		return ""
	}
	return time.UnixMilli(unixMillis).UTC().Format("2006-01-02T15:04:05.000Z")
}

// millis shows a duration.
func millis[N uint32 | uint64](ms N) string {
	return (time.Duration(ms) * time.Millisecond).String()
}

// enum shows an enum value without its prefix, in lower case.
func enum(prefix string, value fmt.Stringer) string {
	return strings.ToLower(strings.TrimPrefix(value.String(), prefix))
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
