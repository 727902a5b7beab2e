package browser

import (
	"bytes"
	"image"
	"image/color"
	"image/png"
	"testing"
)

// shrink makes a picture of the page a third of its size: it has few colours but for the edges of letters, so those that differ
// in their lowest bits alone become one, until a palette holds them.
func shrink(data []byte) ([]byte, error) {
	src, err := png.Decode(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	for bits := 0; ; bits++ {
		small, ok := paletted(src, bits)
		if !ok {
			continue
		}
		var out bytes.Buffer
		encoder := png.Encoder{CompressionLevel: png.BestCompression}
		if err := encoder.Encode(&out, small); err != nil {
			return nil, err
		}
		return out.Bytes(), nil
	}
}

// paletted is a picture in at most 256 colours, each the most common of those that are the same but for their lowest bits; false:
// they are more.
func paletted(src image.Image, bits int) (*image.Paletted, bool) {
	type bucket [3]uint8
	in := func(c color.RGBA) bucket { return bucket{c.R >> bits, c.G >> bits, c.B >> bits} }
	at := func(x, y int) color.RGBA {
		r, g, b, _ := src.At(x, y).RGBA()
		return color.RGBA{uint8(r >> 8), uint8(g >> 8), uint8(b >> 8), 255}
	}
	bounds := src.Bounds()
	count := map[color.RGBA]int{}
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			count[at(x, y)]++
		}
	}
	common := map[bucket]color.RGBA{}
	for c, n := range count {
		if best, ok := common[in(c)]; !ok || n > count[best] {
			common[in(c)] = c
		}
	}
	if len(common) > 256 {
		return nil, false
	}
	index, palette := map[bucket]uint8{}, color.Palette{}
	for b, c := range common {
		index[b] = uint8(len(palette))
		palette = append(palette, c)
	}
	out := image.NewPaletted(bounds, palette)
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			out.SetColorIndex(x, y, index[in(at(x, y))])
		}
	}
	return out, true
}

func TestShrink(t *testing.T) {
	src := image.NewRGBA(image.Rect(0, 0, 64, 64))
	for i := range 64 * 64 {
		src.SetRGBA(i%64, i/64, color.RGBA{uint8(i), uint8(i >> 4), uint8(i >> 6), 255})
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
	for i := range 64 * 64 {
		r, g, b, _ := out.At(i%64, i/64).RGBA()
		want := src.RGBAAt(i%64, i/64)
		for k, d := range []int{int(r>>8) - int(want.R), int(g>>8) - int(want.G), int(b>>8) - int(want.B)} {
			if d > 63 || d < -63 {
				t.Fatalf("pixel %d, channel %d is off by %d", i, k, d)
			}
		}
	}
}
