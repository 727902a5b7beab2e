package config

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func update() bool { return flag.Lookup("update").Value.String() == "true" }

func TestMain(m *testing.M) {
	flag.Bool("update", false, "write the expected texts of testdata anew")
	os.Exit(m.Run())
}

// golden compares got with the file at path, or writes it.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if update() {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func yamlFiles(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in %s: %v", dir, err)
	}
	return files
}

// Each file of testdata/bad is refused with exactly the text beside it.
func TestBad(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	for _, file := range yamlFiles(t, "testdata/bad") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			c, _, err := Load(file)
			e, ok := err.(*Error)
			if !ok || c != nil {
				t.Fatalf("Load = %v, %v, want an *Error alone", c, err)
			}
			for i, p := range e.Problems {
				if !strings.Contains(p.Text, "; ") {
					t.Errorf("%v: gives no way out", p)
				}
				if i > 0 && e.Problems[i-1].Line > p.Line {
					t.Errorf("%v stands behind %v", p, e.Problems[i-1])
				}
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Error("the report shows a secret")
			}
			golden(t, strings.TrimSuffix(file, ".yaml")+".txt", err.Error()+"\n")
		})
	}
}

// Each file of testdata/good loads, with exactly the warnings beside it.
func TestGood(t *testing.T) {
	for _, file := range yamlFiles(t, "testdata/good") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			_, warnings, err := Load(file)
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			for _, w := range warnings {
				got.WriteString(w.String() + "\n")
				if !strings.Contains(w.Text, "; ") {
					t.Errorf("%v: gives no way out", w)
				}
			}
			if strings.Contains(got.String(), "hunter2") {
				t.Error("a warning shows a secret")
			}
			golden(t, strings.TrimSuffix(file, ".yaml")+".txt", got.String())
		})
	}
}
