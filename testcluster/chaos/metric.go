// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/hastate/hastate/testcluster/chaos/rig"
)

// maxMetrics bounds an answer of /metrics.
const maxMetrics = 4 << 20

// metric reads one figure without labels of a node.
func (s *stage) metric(ctx context.Context, h *rig.Host, name string) (float64, error) {
	all, err := s.metrics(ctx, h)
	if err != nil {
		return 0, err
	}
	v, ok := all[name]
	if !ok {
		return 0, fmt.Errorf("%s has no figure %s", h.NodeID(), name)
	}
	return v, nil
}

// metrics reads the figures of a node; those with labels keep them in the name.
func (s *stage) metrics(ctx context.Context, h *rig.Host) (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+h.Web()+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := s.web.Do(req)
	if err != nil {
		return nil, fmt.Errorf("metrics of %s: %w", h.NodeID(), err)
	}
	defer func() { _ = resp.Body.Close() }()
	found := map[string]float64{}
	lines := bufio.NewScanner(io.LimitReader(resp.Body, maxMetrics))
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), " ")
		if !ok || strings.HasPrefix(name, "#") {
			continue
		}
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			found[name] = v
		}
	}
	return found, lines.Err()
}
