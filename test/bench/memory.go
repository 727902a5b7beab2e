package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// watchMemory samples the proportional set size of a process and all its descendants until the returned function is
// called, which gives the peak in octets.
func watchMemory(pid int) func() int64 {
	stop := make(chan struct{})
	var done sync.WaitGroup
	var peak int64
	done.Go(func() {
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for {
			total := int64(0)
			for _, p := range family(pid) {
				total += pss(p)
			}
			peak = max(peak, total)
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	})
	return func() int64 {
		close(stop)
		done.Wait()
		return peak
	}
}

// family returns pid and its descendants.
func family(pid int) []int {
	children := map[int][]int{}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil
	}
	for _, path := range stats {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		child, err1 := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
		parent, err2 := strconv.Atoi(string(fields[1]))
		if err1 == nil && err2 == nil {
			children[parent] = append(children[parent], child)
		}
	}
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all
}

// pss returns a process's proportional set size in octets, 0 for one that has ended.
func pss(pid int) int64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(data) {
		if rest, ok := bytes.CutPrefix(line, []byte("Pss:")); ok {
			kb, err := strconv.ParseInt(string(bytes.Fields(rest)[0]), 10, 64)
			if err != nil {
				return 0
			}
			return kb << 10
		}
	}
	return 0
}
