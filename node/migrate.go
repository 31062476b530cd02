// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/logstore"
)

// MigrateLog rewrites the log of a data folder as another kind. The node must not run;
// a crash in the middle loses nothing, and the call is to be made again.
func MigrateLog(dir string, to logstore.Kind, logger *slog.Logger) (_ logstore.Migrated, err error) {
	if _, err := os.Stat(filepath.Join(dir, "node.json")); errors.Is(err, fs.ErrNotExist) {
		return logstore.Migrated{}, fmt.Errorf("%w: %s is not the data folder of a node: it has no node.json", hastate.ErrPrecondition, dir)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return logstore.Migrated{}, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	return logstore.Migrate(dir, to, logger)
}
