//go:build !linux

package blob

import (
	"io/fs"
	"os"
	"time"
)

// syncData makes the bytes of f durable.
func syncData(f *os.File) error { return f.Sync() }

// startWriteBack is Linux's alone; elsewhere the last sync does all the work.
func startWriteBack(*os.File, int64, int64) (bool, error) { return false, nil }

func waitWriteBack(*os.File, int64, int64) (bool, error) { return false, nil }

func reflink(*os.File, *os.File) bool { return false }

func renameNoReplace(string, string) (bool, error) { return false, nil }

func changedAt(info fs.FileInfo) time.Time { return info.ModTime().UTC() }
