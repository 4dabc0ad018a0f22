package pgsql

import (
	"reflect"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

func descriptorOf(t reflect.Type) protoreflect.MessageDescriptor {
	return reflect.Zero(t).Interface().(proto.Message).ProtoReflect().Descriptor()
}
