#!/bin/sh
# command.sh TWINKLE   the `twinkle` command without Python: exit statuses, error lines, files that are whole or not there,
#                      a run that is resumed.  (contract.py compares its numbers with PyTorch's.)
twinkle=$(cd "$(dirname "$1")" && pwd)/$(basename "$1") goldens=$(pwd)/goldens passed=0 failed=0 here=$(pwd)
work=$(mktemp -d) && cd "$work" || exit 1

ok() { passed=$((passed + 1)); }
bad() { failed=$((failed + 1)); echo "$*"; }
# ends STATUS ARGUMENTS...: that exit status; for 0 nothing on stderr, else one line that begins with "twinkle: "
ends() {
    want=$1; shift
    "$twinkle" "$@" > printed 2> err < /dev/null
    got=$?
    lines=$(wc -l < err)
    if [ $got != "$want" ]; then bad "twinkle $*: exit status $got instead of $want: $(head -n 1 err)"
    elif [ "$want" = 0 ] && [ -s err ]; then bad "twinkle $*: says on stderr $(head -n 1 err)"
    elif [ "$want" != 0 ] && { [ "$lines" != 1 ] || ! grep -q '^twinkle: .' err; }; then bad "twinkle $*: $lines lines on stderr"
    else ok; fi
}
says() { if grep -Eq -- "$1" printed; then ok; else bad "no line matches '$1': $(head -n 3 printed)"; fi; }
same() { if cmp -s "$1" "$2"; then ok; else bad "$1 and $2 differ"; fi; }
there() { if [ -s "$1" ]; then ok; else bad "$1 is not there"; fi; }
absent() { if [ ! -e "$1" ]; then ok; else bad "$1 is there"; fi; }

# the command line
ends 2
ends 2 nonsense
ends 0 --help
says 'generate'
for c in info tokenize forward generate predict train eval convert bench pull start; do ends 0 $c --help; done
for c in info tokenize forward generate predict train eval convert bench pull; do ends 2 $c; done
ends 2 info a b
ends 2 info a --nonsense
ends 2 info a --threads 0
ends 2 info a --threads 1x
ends 2 generate m --ids 1,,2
ends 2 generate m --ids 1 --prompt a
ends 2 convert a b --dtype f13
ends 2 bench nonsense
ends 1 pull gpt2 --to x --endpoint http://127.0.0.1:1     # with curl nobody answers, without it cannot be started
ends 1 start
ends 1 predict m --text a
ends 1 info is-not-there
ends 1 convert is-not-there there --dtype q8_0

# models
model=$goldens/gpt2/default
ends 0 info "$model" --tensors
says 'transformer\.wte\.weight +F32 +\['
ends 0 info "$model" --json
says '"parameters":[0-9]+'
ends 0 tokenize "$goldens/gpt2/tokenizer_json" --text "--flag -12" --json
says '^\{"ids":\[[0-9,]+\],"tokens":\[.*\],"offsets":\[\['
ends 0 tokenize "$goldens/gpt2/tokenizer_files" --text "hello there"
ids=$(cat printed)
ends 0 tokenize "$goldens/gpt2/tokenizer_files" --decode "$ids"
says '^hello there$'
ends 1 tokenize "$goldens/gpt2/tokenizer_files" --decode 100000
ends 0 forward "$model" --in "$model/in.safetensors" --out out.safetensors --hidden-states --grads
there out.safetensors
ends 1 forward "$model" --in "$model/in.safetensors" --out is-not-there/out.safetensors
ends 1 forward "$model" --in "$model/config.json" --out other.safetensors
absent other.safetensors
ends 0 generate "$goldens/gpt2/generate" --ids 1,2,3 --max-new-tokens 5
says '^[0-9]+(,[0-9]+){0,4}$'
ends 0 generate "$goldens/gpt2/generate" --ids 1,2,3 --max-new-tokens 5 --num-beams 3 --json
says '"scores":-[0-9.]+'
ends 1 generate "$goldens/gpt2/generate" --ids 100000
ends 0 convert "$model" half --dtype bf16
ends 0 info half
says 'BF16'

# training: 4 steps at once, and 2 and 2 with a kill between, to the same bits
cd "$goldens/train" && for run in whole halves; do
    printf '{"model":"model","train_file":"even.safetensors","output_dir":"%s/%s","max_steps":6,"logging_steps":1,"save_steps":2,"save_total_limit":2,"learning_rate":0.01,"dropout":0.1,
        "per_device_train_batch_size":2,"gradient_accumulation_steps":2,"eval_file":"even.safetensors","eval_steps":3,"resume_from_checkpoint":%s}' "$work" $run true > "$work/$run.json"
done
ends_in() { cd "$goldens/train" && "$twinkle" train "$work/$1.json" > "$work/printed" 2> "$work/err"; s=$?; cd "$work" || exit 1; if [ $s = 0 ]; then ok; else bad "train $1: $(cat err)"; fi; }
ends_in whole
says 'step 6/6'
there whole/iter-6-ckpt/model.safetensors
there whole/iter-6-ckpt/trainer_state.json
there whole/model.safetensors
absent whole/iter-2-ckpt
cp -r whole halves && rm -r halves/iter-6-ckpt          # as if it had been killed after step 4
ends_in halves
same whole/iter-6-ckpt/model.safetensors halves/iter-6-ckpt/model.safetensors
same whole/model.safetensors halves/model.safetensors
cut -d, -f1-6 whole/train_log.csv > a; cut -d, -f1-6 halves/train_log.csv > b
same a b
if [ "$(wc -l < a)" = 7 ]; then ok; else bad "the log has $(wc -l < a) lines instead of 7"; fi
if ls whole/*.part > /dev/null 2>&1; then bad "train left a part of a checkpoint"; else ok; fi
for wrong in '{' '[]' '{"model":"m"}' '{"model":"m","train_file":"f","learning_rat":1}' '{"model":"m","train_file":"f","max_steps":"ten"}' '{"model":"m","train_file":"f","bf16":true}'; do
    printf '%s' "$wrong" > wrong.json
    ends 1 train wrong.json
done
ends 0 eval "$goldens/train/model" --data "$goldens/train/even.safetensors" --json
says '"loss":[0-9.]+,"perplexity":[0-9.]+'

# quantized: a model that has learned something, what each format costs it, and files that open again
cat > small.json <<EOF
{"model":{"model_type":"gpt2","architectures":["GPT2LMHeadModel"],"n_layer":2,"n_embd":64,"n_head":2,"n_positions":64,"vocab_size":401,
 "resid_pdrop":0,"attn_pdrop":0,"embd_pdrop":0},"tokenizer":"$goldens/gpt2/tokenizer_json","train_file":"text.txt","output_dir":"small","max_steps":150,
 "per_device_train_batch_size":4,"block_size":64,"learning_rate":3e-3,"warmup_steps":10,"logging_steps":50,"save_steps":1000,"seed":1}
EOF
head -c 60000 "$here/../twinkle.h" > text.txt
ends 0 train small.json
for d in q8_0:0.5 int8:1 q4_0:5; do
    ends 0 convert small "small-${d%:*}" --dtype "${d%:*}" --data text.txt --json
    says '"perplexity_before":[0-9.]+,"perplexity_after":[0-9.]+,"perplexity_change_percent":'
    if sed 's/.*"perplexity_before":\([0-9.e+-]*\),"perplexity_after":\([0-9.e+-]*\),.*/\1 \2/' printed | awk -v most="${d#*:}" '{ exit !($1 < 100 && $2 / $1 < 1 + most / 100) }'
    then ok; else bad "convert to ${d%:*} costs too much: $(cat printed)"; fi
    ends 0 generate small --ids 1,2,3 --max-new-tokens 5 --dtype "${d%:*}" --json; cp printed in-memory
    ends 0 generate "small-${d%:*}" --ids 1,2,3 --max-new-tokens 5 --json
    same in-memory printed
done
ends 0 info small-q4_0
says 'Q4_0 \('
ends 0 convert small-q8_0 small-f32 --dtype f32
ends 0 eval small-f32 --data text.txt
ends 0 convert small small-q4_0 --dtype q4_0
says 'not measured: --data'
ends 0 bench gemm --m 9 --n 33 --k 64 --dtype q4_0 --json

# benches: every key of the contract
ends 0 bench gemm --m 9 --n 33 --k 17 --trans-b --json
for k in name threads dtype seconds runs peak_rss_bytes isa m n k gflops; do says "\"$k\":"; done
ends 0 bench attention --seq 33 --heads 2 --head-dim 16 --causal --backward --json
says '"gflops":'
ends 0 bench forward "$model" --batch 2 --seq 5 --json
says '"tokens_per_second":.*"sequences_per_second":'
ends 0 bench generate "$model" --prompt-tokens 4 --new-tokens 4 --json
says '"prompt_tokens_per_second":.*"tokens_per_second":.*"first_token_seconds":.*"load_seconds":'
ends 0 bench train "$model" --batch 2 --seq 5 --gradient-checkpointing --json
says '"tokens_per_second":'
ends 1 bench forward no-such-model

# a disk that is full
if [ -w /dev/full ]; then
    "$twinkle" info "$model" > /dev/full 2> err; if [ $? = 1 ] && [ "$(wc -l < err)" = 1 ]; then ok; else bad "info > /dev/full: $(cat err)"; fi
fi

cd "$here" && rm -rf "$work"
echo "$passed passed, $failed failed"
[ $failed = 0 ]
