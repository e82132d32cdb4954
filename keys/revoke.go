package keys

// A Revocation is one occasion on which something was taken from a user: a key,
// or all of them. Who serves users holds the next one and looks again at those
// whom it concerns, so that nobody need ask the database time and again.
type Revocation struct {
	done chan struct{} // closed once it has come; what follows is set by then
	user string
	next *Revocation
}

func newRevocation() *Revocation { return &Revocation{done: make(chan struct{})} }

// Done is closed once the revocation has come.
func (r *Revocation) Done() <-chan struct{} { return r.done }

// After returns, once r has come, the next one to wait for, and whether user is
// concerned by any since r.
func (r *Revocation) After(user string) (next *Revocation, concerned bool) {
	for {
		select {
		case <-r.done:
			concerned = concerned || r.user == user
			r = r.next
		default:
			return r, concerned
		}
	}
}

// NextRevocation returns the one that comes next. Take it before you ask Who,
// and you miss none.
func (s *Store) NextRevocation() *Revocation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.next
}

// revoke tells those who wait that user may have less than before. A change
// that failed may have happened all the same, and to look again is cheap.
func (s *Store) revoke(user string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.next
	s.next = newRevocation()
	r.user, r.next = user, s.next
	close(r.done)
}
