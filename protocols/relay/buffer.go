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
	r, w  int               // data[r:w] is unconsumed
	small []byte            // of smallBlock bytes, once it was needed
	block *[largeBlock]byte // behind data, or nil
	lent  bool              // data is a loop's own block
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
		b.data = b.smallBlock()
	}
}

func (b *buffer) smallBlock() []byte {
	if b.small == nil {
		b.small = make([]byte, smallBlock)
	}
	return b.small
}

func (b *buffer) release() {
	if b.block != nil {
		blocks.Put(b.block)
		b.block = nil
	}
	b.data, b.r, b.w, b.lent = nil, 0, 0, false
}

// space returns where to read into next: at least one byte, or ErrFrameTooLarge.
func (b *buffer) space() ([]byte, error) {
	if b.data == nil {
		b.data = b.smallBlock()
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

// On a loop, which reads for one session at a time, an empty buffer uses the loop's block, so that a session has memory of
// its own only for messages that came in part.

// borrow has the buffer use the loop's block, if what it has fits there with room to spare.
func (b *buffer) borrow(l *loop) {
	if b.lent || b.block != nil || b.w-b.r > smallBlock {
		return
	}
	n := copy(l.block[:], b.data[b.r:b.w])
	b.release()
	b.data, b.w, b.lent = l.block[:], n, true
}

// own makes a borrowed block the buffer's, where it is; the loop takes another.
func (b *buffer) own(l *loop) {
	if b.lent {
		b.block, b.lent = l.block, false
		l.block = blocks.Get().(*[largeBlock]byte)
	}
}

// keep ends borrowing: what is unconsumed moves to memory of the session's own.
func (b *buffer) keep(l *loop) {
	switch n := b.w - b.r; {
	case n == 0:
		b.release()
	case !b.lent:
	case n <= smallBlock/2:
		copy(b.smallBlock(), b.data[b.r:b.w])
		b.data, b.r, b.w, b.lent = b.small, 0, n, false
	default:
		b.own(l)
	}
}
