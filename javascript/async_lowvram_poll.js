/* Async lowvram: asks the status route, at most once a second, and only while somebody can see the answer. */

(function(root) {
    "use strict";

    const LEAST_S = 1;
    const MOST_S = 60;
    const LOGIN_S = 30;

    /**
     * `ask()` gives a promise of {ok, status, body}; `visible()` says whether the readout can be seen now;
     * `show(body)` and `fail(status, seconds)` tell; `later(callback, seconds)` is setTimeout.
     */
    class Poller {
        constructor({ask, visible, show, fail, later}) {
            Object.assign(this, {ask, visible, show, fail, later});
            this.interval = LEAST_S;
            this.failures = 0;
            this.running = false;
            this.round = 0;
        }

        /** 0 stops it after the answer that said so. */
        setInterval(seconds) {
            this.interval = seconds > 0 ? Math.max(LEAST_S, seconds) : 0;
        }

        start() {
            if (!this.running) {
                this.running = true;
                this.tick(++this.round);
            }
        }

        stop() {
            this.running = false;
            this.round++;
        }

        delay() {
            return Math.min(MOST_S, (this.interval || LEAST_S) * Math.pow(2, this.failures));
        }

        async tick(round) {
            if (round !== this.round) {
                return;
            }
            if (!this.visible()) {
                this.later(() => this.tick(round), LEAST_S);
                return;
            }
            let answer = {ok: false, status: 0, body: null};
            try {
                answer = await this.ask();
            } catch (error) {
                answer.error = error;
            }
            if (round !== this.round) {
                return;
            }
            let seconds = this.delay();
            if (answer.ok) {
                this.failures = 0;
                this.show(answer.body);
                seconds = this.delay();
            } else {
                this.failures++;
                seconds = answer.status === 401 ? LOGIN_S : this.delay();
                this.fail(answer.status, seconds);
            }
            if (answer.ok && this.interval === 0) {
                this.running = false;
                return;
            }
            this.later(() => this.tick(round), seconds);
        }
    }

    root.asyncLowvram = Object.assign(root.asyncLowvram || {}, {Poller});
})(globalThis);
