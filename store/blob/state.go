package blob

import (
	"bytes"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
)

// stateMagic names the format of a state file:
//
//	magic     8 bytes
//	size      int64, big endian: bytes the file will have
//	offset    int64, big endian: bytes that are synced and hashed
//	sum       uint16 length, then the marshalled SHA-256 of those bytes
//	start     uint16 length, then the marshalled SHA-256 of the prefix; empty where there is none
//	combined  uint16 length, then the marshalled SHA-256 of the prefix and those bytes; empty likewise
//	check     32 bytes, SHA-256 of all before
//
// The marshalled forms are those of crypto/sha256. Should another Go release not read them, the state counts as lost
// and the data is hashed again.
const stateMagic = "imgsrvI1"

const maxStateBytes = 4096

// intakeState is what must agree with the data of an intake for it to go on without reading that data again.
type intakeState struct {
	size     int64
	offset   int64
	sum      []byte
	start    []byte // nil without a prefix
	combined []byte // nil without a prefix
}

func (st *intakeState) encode() []byte {
	b := append(make([]byte, 0, 512), stateMagic...)
	b = binary.BigEndian.AppendUint64(b, uint64(st.size))
	b = binary.BigEndian.AppendUint64(b, uint64(st.offset))
	for _, field := range [][]byte{st.sum, st.start, st.combined} {
		b = binary.BigEndian.AppendUint16(b, uint16(len(field)))
		b = append(b, field...)
	}
	check := sha256.Sum256(b)
	return append(b, check[:]...)
}

// decodeState accepts just what encode makes, with hash states that can be taken up. All its errors are ErrStateLost.
func decodeState(b []byte) (*intakeState, error) {
	bad := func(what string) (*intakeState, error) {
		return nil, fmt.Errorf("%w: %s", ErrStateLost, what)
	}
	if len(b) < len(stateMagic)+16+sha256.Size || len(b) > maxStateBytes || string(b[:len(stateMagic)]) != stateMagic {
		return bad("not a state file")
	}
	body, check := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if want := sha256.Sum256(body); !bytes.Equal(want[:], check) {
		return bad("wrong checksum")
	}
	body = body[len(stateMagic):]
	st := &intakeState{
		size:   int64(binary.BigEndian.Uint64(body)),
		offset: int64(binary.BigEndian.Uint64(body[8:])),
	}
	body = body[16:]
	for _, field := range []*[]byte{&st.sum, &st.start, &st.combined} {
		if len(body) < 2 || len(body)-2 < int(binary.BigEndian.Uint16(body)) {
			return bad("cut short")
		}
		end := 2 + int(binary.BigEndian.Uint16(body))
		if end > 2 {
			*field = bytes.Clone(body[2:end])
		}
		body = body[end:]
	}
	if len(body) != 0 || st.size < 0 || st.offset < 0 || st.offset > st.size || (st.start == nil) != (st.combined == nil) {
		return bad("contradicts itself")
	}
	if st.sum == nil {
		return bad("has no hash state")
	}
	for _, field := range [][]byte{st.sum, st.start, st.combined} {
		if field == nil {
			continue
		}
		if _, err := resumeHash(field); err != nil {
			return bad(err.Error())
		}
	}
	return st, nil
}

func (st *intakeState) complete() bool { return st.offset == st.size }

// hashes takes up the hashes that run over the data: the plain one, and the combined one if there is a prefix.
func (st *intakeState) hashes() ([]hash.Hash, error) {
	sum, err := resumeHash(st.sum)
	if err != nil {
		return nil, err
	}
	if st.combined == nil {
		return []hash.Hash{sum}, nil
	}
	combined, err := resumeHash(st.combined)
	if err != nil {
		return nil, err
	}
	return []hash.Hash{sum, combined}, nil
}

// advanced is the state after n more bytes, which the hashes (as hashes returned them) have seen.
func (st *intakeState) advanced(n int64, hashes []hash.Hash) (*intakeState, error) {
	next := &intakeState{size: st.size, offset: st.offset + n, start: st.start}
	var err error
	if next.sum, err = marshalHash(hashes[0]); err != nil {
		return nil, err
	}
	if len(hashes) > 1 {
		if next.combined, err = marshalHash(hashes[1]); err != nil {
			return nil, err
		}
	}
	return next, nil
}

func marshalHash(h hash.Hash) ([]byte, error) {
	m, ok := h.(encoding.BinaryMarshaler)
	if !ok {
		return nil, errors.New("this build's sha256 can't save its state")
	}
	return m.MarshalBinary()
}

func resumeHash(state []byte) (hash.Hash, error) {
	h := sha256.New()
	u, ok := h.(encoding.BinaryUnmarshaler)
	if !ok {
		return nil, errors.New("this build's sha256 can't take up a state")
	}
	if err := u.UnmarshalBinary(state); err != nil {
		return nil, fmt.Errorf("take up hash state: %w", err)
	}
	return h, nil
}

// newState is the state of an intake before its first byte.
func newState(spec IntakeSpec) (*intakeState, error) {
	if spec.SizeBytes < 0 {
		return nil, fmt.Errorf("size of %d bytes is negative", spec.SizeBytes)
	}
	if spec.Prefix != nil && spec.PrefixState != nil {
		return nil, errors.New("both a prefix and the state of a prefix are given")
	}
	st := &intakeState{size: spec.SizeBytes}
	var err error
	if st.sum, err = marshalHash(sha256.New()); err != nil {
		return nil, err
	}
	if spec.Prefix == nil && spec.PrefixState == nil {
		return st, nil
	}
	start := sha256.New()
	if spec.PrefixState != nil {
		if start, err = resumeHash(spec.PrefixState); err != nil {
			return nil, err
		}
	}
	_, _ = start.Write(spec.Prefix) // a hash never fails
	if st.start, err = marshalHash(start); err != nil {
		return nil, err
	}
	st.combined = st.start
	return st, nil
}

// loadState returns fs.ErrNotExist where no state was ever saved, ErrStateLost where it can't be used.
func loadState(path string) (*intakeState, error) {
	f, _, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxStateBytes+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	return decodeState(b)
}

// saveState replaces the state file atomically and durably. Only the holder of the data file's lock may call it.
func (s *Store) saveState(path string, st *intakeState) error {
	return s.writeFile(path, st.encode(), uploadMode)
}
