#!/bin/sh
# examples.sh FOLDER   runs the examples that were built in FOLDER and looks at what they print
bin=$(cd "$1" && pwd) passed=0 failed=0 here=$(pwd)
work=$(mktemp -d) && cd "$work" || exit 1

# says NAME PATTERN: the output of the last program has a line that matches
says() {
    if grep -Eq "$2" printed; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "$1: no line matches '$2':"; tail -n 5 printed; fi
}
# run NAME ARGUMENTS...: must end well, with nothing on stderr
run() {
    name=$1; shift
    if "$bin/$name" "$@" > printed 2> err && [ ! -s err ]; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "$name failed: $(head -n 3 err)"; fi
}

run tensors
says tensors 'step 100 .*w = \( *2\.000, *-3\.000\)'
run own_model
says own_model 'step 150 .*accuracy (9[5-9]|100)\.'
says own_model '^[.#]{60}$'
run plan
says plan 'gpt2: 124\.4 million'
says plan 'gpt2-xl: 1557\.6 million'
run plan "$here/goldens/train/model/config.json"
says plan 'train, checkpointing'

# a story with few steps: what it writes is no story yet, but everything runs
if "$bin/story" "" 40 > printed 2> err; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "story failed: $(tail -n 1 err)"; fi
says story 'million parameters'
says story '^--- 3 ---'
says story 'Wanda was a shy wolf'
run talk out/story "Once upon a time"
says talk '^Once upon a time'
run game_loop out/story "Once upon a time"
says game_loop '^Once upon a time'
cp printed once
run game_loop out/story "Once upon a time"
if cmp -s printed once; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "game_loop: two runs differ"; fi

# what learns from Debian's data, with a handful of lines instead (those who call it get the rest: make -C examples poems)
run_quietly() {
    name=$1; shift
    if "$bin/$name" "$@" > printed 2> err; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "$name failed: $(tail -n 1 err)"; fi
}
run_quietly poems "$here/samples/poems" 300
says poems 'step 300: loss 0\.'
says poems '^held out: loss [0-9.]+ a character'
says poems '^王维《山中》'
run_quietly titles "$here/samples/titles" 400
says titles 'wanted:  .* player'
says titles '^held out: loss [0-9.]+ a token, words in common \(ROUGE-1\) ([89][0-9]|100)\.'
run_quietly sections "$here/samples/sections" 80
says sections '^held out: accuracy (66|100)\.'
says sections '> sound'

cd "$here" && rm -rf "$work"
echo "$passed passed, $failed failed"
[ $failed = 0 ]
