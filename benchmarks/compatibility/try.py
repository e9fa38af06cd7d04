import sys, time, traceback
from compatibility import judge as J
def go(rows, only=None, show=False):
    t0=time.time(); 
    for c in rows:
        if only and not any(o in c.name for o in only): continue
        out=[]
        for m in J.METHODS:
            try: v=J.judge(c,m)
            except Exception as e:
                v=J.Verdict("SCRIPT",repr(e)); traceback.print_exc() if show else None
            out.append(v)
        bad=any(v.word in("FAULT","SCRIPT","refused","torch") for v in out)
        if show or bad:
            print(c.group[:10],'|',c.name,'|',*(f"{v.word} {v.why[:230]}" + "\n     " if v.why else v.word for v in out), flush=True)
        from collections import Counter
    print(time.time()-t0)
if __name__=="__main__":
    import importlib
    mod=importlib.import_module("compatibility."+sys.argv[1])
    go(mod.rows(), sys.argv[2:] , bool(sys.argv[2:]))
