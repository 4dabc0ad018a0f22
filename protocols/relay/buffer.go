package relay

import (
	"errors"
	"io"
	"sync"
)

// ErrFrameTooLarge means that a codec asked for more than MaxFrame bytes of one message.
var ErrFrameTooLarge = errors.New("relay: message exceeds 16 MiB")

// A buffer holds what one side said and the codec has not consumed. Most sessions are quiet most of the time, so it begins
// small, takes a large block only while there is much to move, and gives it back.
type buffer struct {
	data  []byte
	r, w  int // data[r:w] is unconsumed
	small [smallBlock]byte
	block *[largeBlock]byte // behind data, or nil
}

const (
	smallBlock = 2 << 10  // holds nearly every statement; two of them are most of what a quiet session costs
	largeBlock = 64 << 10 // what a read of a busy loopback connection brings
)

var blocks = sync.Pool{New: func() any { return new([largeBlock]byte) }}

func (b *buffer) bytes() []byte { return b.data[b.r:b.w] }

func (b *buffer) discard(n int) {
	if b.r += n; b.r == b.w {
		b.r, b.w = 0, 0
	}
}

// rest makes the buffer small again if it is empty. Call it before waiting.
func (b *buffer) rest() {
	if b.r == b.w && len(b.data) != smallBlock {
		b.release()
		b.data = b.small[:]
	}
}

func (b *buffer) release() {
	if b.block != nil {
		blocks.Put(b.block)
		b.block = nil
	}
	b.data, b.r, b.w = nil, 0, 0
}

// space returns where to read into next: at least one byte, or ErrFrameTooLarge.
func (b *buffer) space() ([]byte, error) {
	if b.data == nil {
		b.data = b.small[:]
	}
	if b.w < len(b.data) {
		return b.data[b.w:], nil
	}
	if b.r > 0 {
		b.w = copy(b.data, b.data[b.r:b.w])
		b.r = 0
		if b.w <= len(b.data)/2 {
			return b.data[b.w:], nil
		}
	}
	return b.grow()
}

func (b *buffer) grow() ([]byte, error) {
	old, w := b.data, b.w
	switch {
	case len(old) < largeBlock:
		block := blocks.Get().(*[largeBlock]byte)
		b.w = copy(block[:], old[:w])
		b.data, b.block = block[:], block
	case len(old) < MaxFrame:
		data := make([]byte, 2*len(old))
		copy(data, old[:w])
		b.release()
		b.data, b.w = data, w
	default:
		return nil, ErrFrameTooLarge
	}
	return b.data[b.w:], nil
}

// fill reads once. io.EOF comes only with nothing read.
func (b *buffer) fill(src io.Reader) (n int, err error) {
	p, err := b.space()
	if err != nil {
		return 0, err
	}
	n, err = src.Read(p)
	b.w += n
	if n > 0 {
		// A full read says that there is more: make room for it.
		if b.w == len(b.data) && len(b.data) < largeBlock {
			_, err = b.grow()
			return n, err
		}
		return n, nil
	}
	return 0, err
}
