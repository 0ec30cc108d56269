// Checks a published log and a receipt with the transparency-log packages of the Go project
// (golang.org/x/mod/sumdb): an implementation that knows nothing of this one.
//
// usage: interop FOLDER OLD-CHECKPOINT PROOF ENTRY
//
// Verifies both checkpoints, that the older tree is a prefix of the present one, the inclusion
// of every entry of every bundle, and the receipt of one of them.
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "interop:", err)
		os.Exit(1)
	}
}

func read(path string) []byte {
	data, err := os.ReadFile(path)
	must(err)
	return data
}

// files reads the tiles of a folder; the tlog package checks each against the root.
type files string

func (f files) Height() int { return 8 }

func (f files) SaveTiles([]tlog.Tile, [][]byte) {}

func (f files) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, tile := range tiles {
		name := strings.Replace(tile.Path(), "tile/8/", "tile/", 1)
		data, err := os.ReadFile(filepath.Join(string(f), name))
		if err != nil { // a partial tile may be taken from the full one
			full := strings.Split(name, ".p/")[0]
			data, err = os.ReadFile(filepath.Join(string(f), full))
		}
		if err != nil {
			return nil, err
		}
		all = append(all, data[:tile.W*tlog.HashSize])
	}
	return all, nil
}

func parseHash(text string) (hash tlog.Hash) {
	data, err := base64.StdEncoding.DecodeString(text)
	must(err)
	if copy(hash[:], data) != tlog.HashSize || len(data) != tlog.HashSize {
		must(fmt.Errorf("not a hash: %q", text))
	}
	return hash
}

func openCheckpoint(data []byte, verifier note.Verifier) tlog.Tree {
	opened, err := note.Open(data, note.VerifierList(verifier))
	must(err)
	lines := strings.Split(opened.Text, "\n")
	if lines[0] != verifier.Name() {
		must(fmt.Errorf("checkpoint of %q", lines[0]))
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	must(err)
	return tlog.Tree{N: size, Hash: parseHash(lines[2])}
}

func checkReceipt(data, entry []byte, verifier note.Verifier) {
	head, signed, found := bytes.Cut(data, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	if !found || lines[0] != "c2sp.org/tlog-proof@v1" {
		must(fmt.Errorf("not a tlog-proof"))
	}
	index, err := strconv.ParseInt(strings.TrimPrefix(lines[1], "index "), 10, 64)
	must(err)
	var proof tlog.RecordProof
	for _, line := range lines[2:] {
		proof = append(proof, parseHash(line))
	}
	tree := openCheckpoint(signed, verifier)
	must(tlog.CheckRecord(proof, tree.N, tree.Hash, index, tlog.RecordHash(entry)))
}

func main() {
	folder := os.Args[1]
	verifier, err := note.NewVerifier(strings.TrimSpace(string(read(filepath.Join(folder, "log.vkey")))))
	must(err)
	tree := openCheckpoint(read(filepath.Join(folder, "checkpoint")), verifier)
	old := openCheckpoint(read(os.Args[2]), verifier)
	hashes := tlog.TileHashReader(tree, files(folder))

	prefix, err := tlog.ProveTree(tree.N, old.N, hashes)
	must(err)
	must(tlog.CheckTree(prefix, tree.N, tree.Hash, old.N, old.Hash))

	for first := int64(0); first < tree.N; first += 256 {
		bundle := tlog.Tile{H: 8, L: 0, N: first / 256, W: int(min(256, tree.N-first))}
		name := strings.Replace(bundle.Path(), "tile/8/0/", "tile/entries/", 1)
		data := read(filepath.Join(folder, name))
		for index := first; index < first+int64(bundle.W); index++ {
			size := int(binary.BigEndian.Uint16(data))
			proof, err := tlog.ProveRecord(tree.N, index, hashes)
			must(err)
			leaf := tlog.RecordHash(data[2 : 2+size])
			must(tlog.CheckRecord(proof, tree.N, tree.Hash, index, leaf))
			data = data[2+size:]
		}
		if len(data) > 0 {
			must(fmt.Errorf("%s: %d bytes too many", name, len(data)))
		}
	}
	checkReceipt(read(os.Args[3]), read(os.Args[4]), verifier)
	fmt.Println("verified", tree.N, "entries")
}

func min(a, b int64) int64 {
	if a < b {
		return a
	}
	return b
}
