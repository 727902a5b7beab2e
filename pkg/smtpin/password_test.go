package smtpin

import (
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/bcrypt"
)

func TestPasswordHashVerifies(t *testing.T) {
	hash, err := HashPassword("correct horse")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(hash, "$2a$10$") || len(hash) != 60 {
		t.Errorf("hash %q is not bcrypt of cost 10", hash)
	}
	if other, err := HashPassword("correct horse"); err != nil || other == hash {
		t.Errorf("two hashes of one password are %q and %q, %v; want a salt", hash, other, err)
	}
	for _, c := range []struct {
		password string
		want     bool
	}{
		{"correct horse", true},
		{"correct horse ", false},
		{"", false},
	} {
		got, err := VerifyPassword(hash, c.password)
		if err != nil || got != c.want {
			t.Errorf("VerifyPassword(%q) = %v, %v, want %v", c.password, got, err, c.want)
		}
	}
}

func TestPasswordForeignHash(t *testing.T) {
	// htpasswd -B writes $2y$; the hash is that of the test vector for "" with cost 6 of the OpenBSD suite, and of "abc".
	const abc = "$2y$06$If6bvum7DFjUnE9p2uDeDu0YHzrHM6tf.iqN8.yx.jNN1ILEf7h0i"
	if ok, err := VerifyPassword(abc, "abc"); !ok || err != nil {
		t.Errorf("a $2y$ hash: got %v, %v, want true", ok, err)
	}
	const empty = "$2a$06$DCq7YPn5Rq63x1Lad4cll.TV4S6ytwfsfvkY8jIucDrjc8deX1s1."
	if ok, err := VerifyPassword(empty, ""); ok || err != nil {
		t.Errorf("an empty password: got %v, %v, want false even where the hash is of it", ok, err)
	}
	for _, hash := range []string{"", "secret", "$2a$10$short", "$6$rounds=5000$abc$def"} {
		if ok, err := VerifyPassword(hash, "secret"); ok || err == nil {
			t.Errorf("VerifyPassword(%q) = %v, %v, want an error", hash, ok, err)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("the error %q shows hash or password", err)
		}
	}
}

func TestPasswordLength(t *testing.T) {
	longest := strings.Repeat("x", 72)
	hash := cheapHash(t, longest)
	if ok, _ := VerifyPassword(hash, longest); !ok {
		t.Error("a password of 72 octets is refused")
	}
	// Bcrypt itself would take it.
	if ok, _ := VerifyPassword(hash, longest+"y"); ok {
		t.Error("octets behind the 72nd do not count")
	}
	for _, password := range []string{"", longest + "x"} {
		if _, err := HashPassword(password); err == nil {
			t.Errorf("HashPassword of %d octets: no error", len(password))
		}
	}
}

// cheapHash is a hash of the lowest cost: what is tested with it does not depend on the cost.
func cheapHash(t *testing.T, password string) string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return string(hash)
}

func TestPasswordsRemembersOnlyWhatWasRight(t *testing.T) {
	hash, other := cheapHash(t, "right"), cheapHash(t, "other")
	var p Passwords
	check := func(hash, password string, want bool) {
		t.Helper()
		if got, err := p.Verify(hash, password); got != want || err != nil {
			t.Errorf("Verify(%q) = %v, %v, want %v", password, got, err, want)
		}
	}
	check(hash, "wrong", false)
	if len(p.right) != 0 {
		t.Error("a wrong password is remembered")
	}
	check(hash, "right", true)
	if len(p.right) != 1 {
		t.Error("the right password is not remembered")
	}
	check(hash, "right", true)
	check(hash, "wrong", false)
	check(hash, "", false)
	check(other, "right", false) // what is right for one client is not for another
	check(other, "other", true)
	if _, err := p.Verify("no hash", "right"); err == nil {
		t.Error("Verify with a malformed hash: no error")
	}
}

func TestPasswordsAsksTheHashOnlyOnce(t *testing.T) {
	var p Passwords
	// Were the hash asked again, a malformed one would be an error.
	p.right = map[string][32]byte{"no hash": p.mac("no hash", "right")}
	if ok, err := p.Verify("no hash", "right"); !ok || err != nil {
		t.Errorf("a login that is known: got %v, %v, want true without asking the hash", ok, err)
	}
	var another Passwords
	if another.mac("no hash", "right") == p.mac("no hash", "right") {
		t.Error("two processes share the key of the MAC")
	}
}

func TestPasswordsTogether(t *testing.T) {
	hash := cheapHash(t, "right")
	var p Passwords
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if ok, err := p.Verify(hash, "right"); !ok || err != nil {
				t.Errorf("the right password: got %v, %v", ok, err)
			}
			if ok, err := p.Verify(hash, "wrong"); ok || err != nil {
				t.Errorf("a wrong password: got %v, %v", ok, err)
			}
		})
	}
	wg.Wait()
}
