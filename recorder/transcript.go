package recorder

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"sallyport/protocols"
)

// A transcript is a file of blocks that can each be read alone:
//
//	"sptrans1"
//	block…
//
// A block is 44 bytes of header and one zstd frame:
//
//	uint32  length of the zstd frame      (numbers are little-endian)
//	uint32  length of what it holds, at most 256 KiB
//	uint32  CRC-32C of the header without this field, and of the zstd frame
//	32 byte link: SHA-256 of the link before, the two lengths, and the zstd frame
//
// The link before the first block is SHA-256 of "sptrans1" and the session's id, so that a block fits nowhere but where it
// was written. The CRC finds a torn end cheaply; the link, sealed into the audit log with the file's hash, finds the rest.
//
// A block holds frames:
//
//	byte     what: 0 client said, 1 server said, 2 gap, 3 truncated; + 4 if side is the server for 2 and 3
//	uvarint  microseconds since the frame before it in this block; for the first, since the session started
//	uvarint  exchange, 0 for none
//	uvarint  length of the rest
//	bytes    what was said; for gap and truncated: uvarint bytes lost + 1, 0 for unknown, and the reason
const (
	transcriptMagic = "sptrans1"
	blockHeader     = 44
	maxBlock        = 256 << 10
	// maxFrameHead is how long a frame's first four fields can be.
	maxFrameHead = 1 + 3*binary.MaxVarintLen64
	// maxStored bounds a block's zstd frame: what does not compress grows by its headers, 3 bytes for each 128 KiB.
	maxStored = maxBlock + 1<<10
)

const (
	whatClient byte = iota
	whatServer
	whatGap
	whatTruncated
	whatOfServer byte = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// coders are shared by all sessions: each costs more memory than a session may.
var coders = sync.OnceValue(func() (c struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}) {
	var err error
	c.enc, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(maxBlock),
		zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true), zstd.WithEncoderConcurrency(2))
	if err == nil {
		c.dec, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxMemory(maxBlock),
			zstd.WithDecoderMaxWindow(maxBlock), zstd.WithDecodeAllCapLimit(true))
	}
	if err != nil {
		panic(err) // the options above are constants
	}
	return c
})

// A link is the running hash over a transcript's blocks.
type link [sha256.Size]byte

func firstLink(session string) link {
	return sha256.Sum256([]byte(transcriptMagic + session))
}

// appendBlock makes a block of raw, and returns the link after it.
func appendBlock(b []byte, before link, raw []byte) ([]byte, link) {
	at := len(b)
	b = append(b, make([]byte, blockHeader)...)
	b = coders().enc.EncodeAll(raw, b)
	head, stored := b[at:at+blockHeader], b[at+blockHeader:]
	binary.LittleEndian.PutUint32(head, uint32(len(stored)))
	binary.LittleEndian.PutUint32(head[4:], uint32(len(raw)))
	after := before.next(head[:8], stored)
	copy(head[12:], after[:])
	binary.LittleEndian.PutUint32(head[8:], blockSum(head, stored))
	return b, after
}

func (l link) next(lengths, stored []byte) (after link) {
	h := sha256.New()
	h.Write(l[:])
	h.Write(lengths)
	h.Write(stored)
	h.Sum(after[:0])
	return after
}

func blockSum(head, stored []byte) uint32 {
	sum := crc32.Update(0, castagnoli, head[:8])
	sum = crc32.Update(sum, castagnoli, head[12:blockHeader])
	return crc32.Update(sum, castagnoli, stored)
}

// A blockReader reads the blocks of a transcript that anybody may have written. Its memory is bounded by two blocks.
type blockReader struct {
	r      io.Reader
	link   link
	offset int64 // of the next block
	stored []byte
	raw    []byte
}

// errBlock is what is wrong with a block, or with the place where it stands.
type errBlock struct {
	Offset int64
	Kind   string // see Problem
	Text   string
}

func (e *errBlock) Error() string { return fmt.Sprintf("transcript: at byte %d: %s", e.Offset, e.Text) }

// newBlockReader reads the file's first bytes. An empty file has no blocks and is whole.
func newBlockReader(r io.Reader, session string) (*blockReader, error) {
	b := &blockReader{r: r, link: firstLink(session)}
	var magic [len(transcriptMagic)]byte
	switch n, err := io.ReadFull(r, magic[:]); {
	case n == 0 && err == io.EOF:
		return b, nil
	case err == io.ErrUnexpectedEOF:
		return b, &errBlock{0, KindCut, "ends within its first bytes"}
	case err != nil:
		return b, err
	case string(magic[:]) != transcriptMagic:
		return b, &errBlock{0, KindChanged, "does not begin as a transcript does"}
	}
	b.offset = int64(len(magic))
	return b, nil
}

// next returns what the next block holds, valid until the one after it. It errors with io.EOF at the end and *errBlock
// where the file is wrong.
func (b *blockReader) next() ([]byte, error) {
	var head [blockHeader]byte
	switch n, err := io.ReadFull(b.r, head[:]); {
	case n == 0 && err == io.EOF:
		return nil, io.EOF
	case err == io.ErrUnexpectedEOF:
		return nil, &errBlock{b.offset, KindCut, fmt.Sprintf("ends %d bytes into a block's header", n)}
	case err != nil:
		return nil, err
	}
	stored, raw := binary.LittleEndian.Uint32(head[:]), binary.LittleEndian.Uint32(head[4:])
	if stored > maxStored || raw > maxBlock {
		return nil, &errBlock{b.offset, KindChanged, fmt.Sprintf("a block of %d bytes holding %d is larger than any may be", stored, raw)}
	}
	if cap(b.stored) < int(stored) {
		b.stored = make([]byte, stored)
	}
	b.stored = b.stored[:stored]
	switch n, err := io.ReadFull(b.r, b.stored); {
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		return nil, &errBlock{b.offset, KindCut, fmt.Sprintf("ends %d bytes into a block of %d", blockHeader+n, blockHeader+stored)}
	case err != nil:
		return nil, err
	}
	if blockSum(head[:], b.stored) != binary.LittleEndian.Uint32(head[8:]) {
		return nil, &errBlock{b.offset, KindChanged, "a block does not match its checksum"}
	}
	after := b.link.next(head[:8], b.stored)
	if after != link(head[12:blockHeader]) {
		return nil, &errBlock{b.offset, KindSpliced, "a block does not follow the one before it in this session"}
	}
	if cap(b.raw) < int(raw) {
		b.raw = make([]byte, 0, raw)
	}
	p, err := coders().dec.DecodeAll(b.stored, b.raw[:0:raw])
	if err != nil || len(p) != int(raw) {
		return nil, &errBlock{b.offset, KindChanged, "a block cannot be unpacked"}
	}
	b.link = after
	b.offset += blockHeader + int64(stored)
	return p, nil
}

// appendFrame appends as much of p as fits a block that holds b already, and returns how much that was. It takes all of p
// or fills the block; with no room for a byte it takes none.
func appendFrame(b []byte, what byte, since time.Duration, exchange uint64, p []byte) ([]byte, int) {
	room := maxBlock - len(b) - maxFrameHead
	if room <= 0 {
		return b, 0
	}
	n := min(len(p), room)
	b = append(b, what)
	b = binary.AppendUvarint(b, uint64(max(since.Microseconds(), 0)))
	b = binary.AppendUvarint(b, exchange)
	b = binary.AppendUvarint(b, uint64(n))
	return append(b, p[:n]...), n
}

// lossFrame is a frame that says that bytes are not in the transcript; lost is -1 if nobody knows how many.
func lossFrame(lost int64, reason string) []byte {
	p := binary.AppendUvarint(nil, uint64(lost+1))
	return append(p, reason[:min(len(reason), 4<<10)]...)
}

var errFrame = errors.New("transcript: malformed frame")

// cutFrame reads the first frame of what a block holds. at is the offset of the frame before.
func cutFrame(b []byte, at time.Duration) (f Frame, rest []byte, err error) {
	if len(b) == 0 {
		return f, nil, errFrame
	}
	what := b[0]
	b = b[1:]
	var v [3]uint64
	for i := range v {
		n := 0
		if v[i], n = binary.Uvarint(b); n <= 0 {
			return f, nil, errFrame
		}
		b = b[n:]
	}
	if v[0] > uint64(1<<62/time.Microsecond) || v[2] > uint64(len(b)) {
		return f, nil, errFrame
	}
	f.Offset, f.Exchange = at+time.Duration(v[0])*time.Microsecond, v[1]
	if f.Offset < at {
		return f, nil, errFrame
	}
	p, rest := b[:v[2]:v[2]], b[v[2]:]
	side := protocols.Client
	switch {
	case what == whatClient || what == whatServer:
		side = protocols.Side(what)
		f.Kind, f.Side, f.Data = FrameBytes, side.String(), p
		return f, rest, nil
	case what&^whatOfServer == whatGap:
		f.Kind = FrameGap
	case what&^whatOfServer == whatTruncated:
		f.Kind = FrameTruncated
	default:
		return f, nil, errFrame
	}
	if what&whatOfServer != 0 {
		side = protocols.Server
	}
	lost, n := binary.Uvarint(p)
	if n <= 0 || lost > 1<<62 {
		return f, nil, errFrame
	}
	f.Side, f.Lost, f.Reason = side.String(), int64(lost)-1, string(p[n:])
	return f, rest, nil
}
