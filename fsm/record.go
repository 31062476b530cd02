// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// encodeRecord is the stored form of a record. Equal records give equal bytes:
// the state hash is made of them.
func encodeRecord(rec proto.Message) ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(rec)
	if err != nil {
		return nil, fmt.Errorf("encode record: %w", err)
	}
	return b, nil
}

// decodeRecord reads a record of a table.
func decodeRecord(t table, b []byte) (proto.Message, error) {
	var rec proto.Message
	switch t {
	case tableSessions:
		rec = &pb.Session{}
	case tableGroups:
		rec = &pb.Group{}
	case tableInstances:
		rec = &pb.Instance{}
	case tableHistory:
		rec = &pb.Transition{}
	case tableModels:
		rec = &pb.ModelVersion{}
	case tableAliases:
		rec = &pb.ModelAlias{}
	case tableMembers:
		rec = &pb.Member{}
	default:
		return nil, fmt.Errorf("decode record: no table %d", t)
	}
	if err := proto.Unmarshal(b, rec); err != nil {
		return nil, fmt.Errorf("decode record of table %d: %w", t, err)
	}
	return rec, nil
}
