package browser

import (
	"bytes"
	"cmp"
	"image"
	"image/color"
	"image/png"
	"maps"
	"slices"
	"testing"
)

// shrink makes a picture of the page a third of its size: it has few colours but for the edges of letters, so the 256 most common
// do for all.
func shrink(data []byte) ([]byte, error) {
	src, err := png.Decode(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	bounds := src.Bounds()
	count := map[color.RGBA]int{}
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			count[solid(src, x, y)]++
		}
	}
	common := slices.SortedFunc(maps.Keys(count), func(a, b color.RGBA) int {
		return cmp.Or(count[b]-count[a], int(a.R)-int(b.R), int(a.G)-int(b.G), int(a.B)-int(b.B))
	})
	var palette color.Palette
	for _, c := range common[:min(len(common), 256)] {
		palette = append(palette, c)
	}
	nearest := map[color.RGBA]uint8{}
	for _, c := range common {
		nearest[c] = uint8(palette.Index(c)) //nolint:gosec // of at most 256
	}
	small := image.NewPaletted(bounds, palette)
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			small.SetColorIndex(x, y, nearest[solid(src, x, y)])
		}
	}
	var out bytes.Buffer
	encoder := png.Encoder{CompressionLevel: png.BestCompression}
	if err := encoder.Encode(&out, small); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// solid is the colour of a point; the page is not transparent.
func solid(src image.Image, x, y int) color.RGBA {
	r, g, b, _ := src.At(x, y).RGBA()
	return color.RGBA{uint8(r >> 8), uint8(g >> 8), uint8(b >> 8), 255} //nolint:gosec // of 16 bits the upper 8
}

func TestShrink(t *testing.T) {
	const side = 64
	for _, colours := range []int{2, 256, 1000} {
		src := image.NewRGBA(image.Rect(0, 0, side, side))
		ground := color.RGBA{244, 245, 247, 255}
		for i := range side * side {
			c := ground
			if i < colours-1 {
				c = color.RGBA{uint8(i), uint8(i >> 2), uint8(i >> 4), 255}
			}
			src.SetRGBA(i%side, i/side, c)
		}
		var in bytes.Buffer
		if err := png.Encode(&in, src); err != nil {
			t.Fatal(err)
		}
		data, err := shrink(in.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		out, err := png.Decode(bytes.NewReader(data))
		if err != nil || out.Bounds() != src.Bounds() {
			t.Fatal(err, out.Bounds())
		}
		for i := range side * side {
			want := src.RGBAAt(i%side, i/side)
			if got := solid(out, i%side, i/side); got != want && (colours <= 256 || want == ground) {
				t.Fatalf("%d colours: point %d is %v, want %v", colours, i, got, want)
			}
		}
	}
}
