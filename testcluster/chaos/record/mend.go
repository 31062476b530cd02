// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Mend cuts off a last line that a kill has torn, so that the next process of the
// same kind can go on with the file. A file that does not exist is no error.
func Mend(path string) error {
	whole, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("mend record: %w", err)
	}
	end := int64(bytes.LastIndexByte(whole, '\n') + 1)
	if end == int64(len(whole)) {
		return nil
	}
	if err := os.Truncate(path, end); err != nil {
		return fmt.Errorf("mend record: %w", err)
	}
	return nil
}
