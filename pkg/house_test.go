// Package pkg_test holds the rules of the house that no compiler checks.
package pkg_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// table says what each package may import from relayd/pkg; HACKING.md explains it. A package that is not here fails.
var table = map[string][]string{
	"envelope":   {},
	"status":     {},
	"config":     {},
	"message":    {},
	"admission":  {"envelope", "status", "message"},
	"keypair":    {},
	"smtpin":     {"admission", "keypair", "envelope", "status", "message"},
	"policy":     {"envelope", "status"},
	"broker":     {},
	"queue":      {"envelope", "status"},
	"dispatch":   {"envelope", "status"},
	"exchange":   {"envelope", "status"},
	"entra":      {"status"},
	"admin":      {"keypair", "envelope", "status"},
	"history":    {"envelope"},
	"bounce":     {"envelope", "status"},
	"postmaster": {"bounce", "envelope", "status"},
	"sandbox":    {},
	"vault":      {},
	"live":       {"envelope"},
	"radar":      {},
}

// banned are names that say nothing.
var banned = []string{"util", "utils", "common", "types", "helper", "helpers", "misc", "base", "shared", "lib"}

// sources parses every non-test file below dir, by folder.
func sources(t *testing.T, dir string) map[string][]*ast.File {
	t.Helper()
	files := map[string][]*ast.File{}
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		folder := filepath.ToSlash(filepath.Dir(path))
		files[folder] = append(files[folder], file)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatalf("no sources below %s", dir)
	}
	return files
}

func TestImports(t *testing.T) {
	for folder, files := range sources(t, ".") {
		owner, _, _ := strings.Cut(folder, "/")
		allowed, ok := table[owner]
		if !ok {
			t.Errorf("package %s is not in the table: decide what it may import", folder)
			continue
		}
		for _, file := range files {
			for _, spec := range file.Imports {
				path, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					t.Fatal(err)
				}
				path, ours := strings.CutPrefix(path, "relayd/")
				if !ours {
					continue
				}
				name, _, _ := strings.Cut(strings.TrimPrefix(path, "pkg/"), "/")
				if path == "configs" && owner == "config" {
					continue // the sample file, embedded
				}
				if name != owner && !slices.Contains(allowed, name) {
					t.Errorf("%s imports relayd/%s: %s may import only %v", folder, path, owner, allowed)
				}
			}
		}
	}
}

func TestTableHasNoGhosts(t *testing.T) {
	for name := range table {
		if found, _ := filepath.Glob(filepath.Join(name, "*.go")); len(found) == 0 {
			t.Errorf("the table names package %s, which does not exist", name)
		}
	}
}

func TestNamesAndComments(t *testing.T) {
	folders := sources(t, ".")
	for folder, files := range sources(t, "../cmd") {
		folders[folder] = files
	}
	for folder, files := range folders {
		if slices.Contains(banned, filepath.Base(folder)) {
			t.Errorf("package %s: name it after what it holds", folder)
		}
		documented := false
		for _, file := range files {
			documented = documented || file.Doc.Text() != ""
		}
		if !documented {
			t.Errorf("package %s has no package comment", folder)
		}
	}
}

func TestNoInit(t *testing.T) {
	folders := sources(t, ".")
	for folder, files := range sources(t, "../cmd") {
		folders[folder] = files
	}
	for folder, files := range folders {
		for _, file := range files {
			for _, decl := range file.Decls {
				if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
					t.Errorf("package %s has an init function: wire in cmd/relayd instead", folder)
				}
			}
		}
	}
}
