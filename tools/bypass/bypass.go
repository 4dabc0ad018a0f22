// Package bypass holds the proof that an agent does not get out: a program that tries every way that is known (escapee/),
// and tests that let it try outside of any agent, as a command of `sallyport run`, and in a cgroup that is governed and
// nothing else. It has no code for others to use. `make test-bypass` prints the list.
package bypass
