package view

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strings"
	"time"
)

// StaticPath is where the files a browser needs are served.
const StaticPath = "/static/"

// assets is the files a browser needs, each under an address that changes with its content.
type assets struct {
	urls  map[string]string // by name
	files map[string]asset  // by the last element of the address
}

type asset struct {
	content []byte
	media   string
	tag     string
}

// loadAssets reads assets/ of a tree, scripts and styles alone.
func loadAssets(tree fs.FS) (*assets, error) {
	a := &assets{urls: map[string]string{}, files: map[string]asset{}}
	names, err := fs.Glob(tree, "assets/*")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		ext := path.Ext(name)
		if ext != ".js" && ext != ".css" && ext != ".svg" {
			continue
		}
		content, err := fs.ReadFile(tree, name)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(content)
		tag := hex.EncodeToString(sum[:8])
		base := path.Base(name)
		served := strings.TrimSuffix(base, ext) + "." + tag + ext
		a.urls[base] = StaticPath + served
		a.files[served] = asset{content: content, media: mime.TypeByExtension(ext), tag: `"` + tag + `"`}
	}
	return a, nil
}

func (a *assets) url(name string) (string, error) {
	if u := a.urls[name]; u != "" {
		return u, nil
	}
	return "", fmt.Errorf("there is no asset %q", name)
}

// Static serves what is below [StaticPath]. It tells no secret: anyone may ask.
func (v *Renderer) Static(w http.ResponseWriter, r *http.Request) {
	f, ok := v.assets.files[strings.TrimPrefix(r.URL.Path, StaticPath)]
	if !ok {
		http.Error(w, "there is no such file", http.StatusNotFound)
		return
	}
	h := w.Header()
	h.Set("Content-Type", f.media)
	h.Set("Cache-Control", "public, max-age=31536000, immutable") // another content has another address
	h.Set("ETag", f.tag)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.content))
}
