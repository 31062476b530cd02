// SPDX-License-Identifier: Apache-2.0

package fsm

import "google.golang.org/protobuf/reflect/protoreflect"

// known reports whether a message and all in it consist of fields that this program
// knows, at any depth: a field that is dropped at one node only makes its state
// another one than that of the others. The depth is bounded by the schema and by the
// limit of proto.Unmarshal.
func known(m protoreflect.Message) bool {
	if len(m.GetUnknown()) > 0 {
		return false
	}
	ok := true
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.IsMap():
			if field.MapValue().Message() != nil {
				value.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
					ok = known(v.Message())
					return ok
				})
			}
		case field.Message() == nil:
		case field.IsList():
			for i := 0; ok && i < value.List().Len(); i++ {
				ok = known(value.List().Get(i).Message())
			}
		default:
			ok = known(value.Message())
		}
		return ok
	})
	return ok
}
