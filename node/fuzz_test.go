// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/hastate/hastate/instance"
)

// FuzzIdentity reads any bytes as node.json: they are refused and left alone, or they
// are an identity of this node that is read back as it is.
func FuzzIdentity(f *testing.F) {
	f.Add([]byte(`{"format": 1, "node_id": "n1", "cluster_id": "c", "admitted": true, "addresses": {"n2": "a:1"}}`))
	f.Add([]byte(`{"format": 99, "node_id": "n1", "later": {}}`))
	f.Add([]byte(`{"node_id": "n1"}`))
	f.Add([]byte(`{"format": 1, "node_id": "n1", "clusterid": "c"}`))
	f.Add([]byte(`{"format": 1, "node_id": "n1"}{}`))
	f.Add([]byte("null"))
	dir := f.TempDir()
	path := filepath.Join(dir, "node.json")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		id, err := openIdentity(dir, "n1")
		if err != nil {
			if !strings.Contains(err.Error(), "node.json") && !strings.Contains(err.Error(), dir) {
				t.Fatalf("it does not say which file: %v", err)
			}
			if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, data) {
				t.Fatalf("a refused file was changed: %v", err)
			}
			return
		}
		if id.saved.Format != identityFormat || id.saved.NodeID != "n1" {
			t.Fatalf("%s was taken as %+v", data, id.saved)
		}
		if _, err := id.Learn("stranger", "b:2"); err != nil && len(id.saved.Addresses) < maxAddresses {
			t.Fatal(err)
		}
		if err := id.write(); err != nil {
			t.Fatal(err)
		}
		again, err := openIdentity(dir, "n1")
		if err != nil || !reflect.DeepEqual(again.saved, id.saved) {
			t.Fatalf("%+v was read back as %+v, %v", id.saved, again, err)
		}
	})
}

// FuzzHTTP asks a node for anything: the probes answer 200 or 503 with JSON that is
// true, everything else is not found, and nothing makes the metrics grow.
func FuzzHTTP(f *testing.F) {
	c := single(f.TempDir())
	c.Instances = []InstanceConfig{{Group: "g", Address: "127.0.0.1:1", Attach: instance.Config{Kind: "tcp", Target: "127.0.0.1:1"}}}
	n, err := Open(c)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := n.Close(); err != nil {
			f.Error(err)
		}
	})
	h := n.handler()
	f.Add("GET", "/primary?group=g")
	f.Add("GET", "/primary?group=")
	f.Add("GET", "/standby?group=other&group=g")
	f.Add("GET", "/livez")
	f.Add("HEAD", "/readyz?x=%zz;")
	f.Add("POST", "/metrics")
	f.Add("GET", "//primary/../livez?%00")
	f.Fuzz(func(t *testing.T, method, target string) {
		u, err := url.ParseRequestURI(target)
		if err != nil || u.Path == "" || u.Path[0] != '/' || !token(method) {
			return // net/http answers 400 before the handler
		}
		req := &http.Request{Method: method, URL: u, RequestURI: target, Header: http.Header{}, Host: "node", Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Body: http.NoBody}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req.WithContext(t.Context()))
		switch w.Code {
		case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusMovedPermanently, http.StatusTemporaryRedirect, http.StatusBadRequest:
			return
		case http.StatusOK, http.StatusServiceUnavailable:
		default:
			t.Fatalf("%s %s answers %d", method, target, w.Code)
		}
		if u.Path == "/metrics" {
			if w.Body.Len() > 1<<20 {
				t.Fatalf("%d bytes of metrics", w.Body.Len())
			}
			return
		}
		var p probe
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
			t.Fatalf("%s %s answers %q: %v", method, target, w.Body, err)
		}
		if p.OK != (w.Code == http.StatusOK) || p.Node != "n1" || p.Reason == "" {
			t.Fatalf("%s %s answers %d %+v", method, target, w.Code, p)
		}
		if p.OK && (u.Path == "/primary" || u.Path == "/standby") {
			t.Fatalf("%s is true of a node whose model server is down: %+v", target, p)
		}
	})
}

// token tells what net/http takes for a method.
func token(s string) bool {
	return s != "" && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-") == ""
}
